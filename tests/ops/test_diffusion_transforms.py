"""The diffusion ops under torch.compile, opcheck and function transforms, and without a single wait."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastdl
from fastdl import _extension
from fastdl.ops.diffusion import Schedule, schedules, schema, steps

needs_cpu = pytest.mark.skipif(not _extension.cpu.loaded, reason="CPU kernels are not loaded")
SCHEDULE = Schedule.from_betas(schedules.betas("linear", 20))
DDPM = steps.ddpm(SCHEDULE, torch.arange(-1, 19), "epsilon")
READS = {
    "_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "allclose", "_is_all_true",
}  # fmt: skip


class NoRead(TorchDispatchMode):
    """Refuses every operator that needs a tensor's values on the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in READS, f"{function} reads a value on the host"
        return function(*args, **(kwargs or {}))


def inputs(n: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    return *torch.randn(3, n, 2, 4, 4, generator=generator), torch.arange(n) * 5 % 20


def test_the_guard_sees_a_read():
    with NoRead(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(()).item()


def test_no_value_is_read_by_the_ops():
    x, m, n, t = inputs()
    x.requires_grad_()
    with NoRead():
        for seed in (None, torch.tensor([1, 2])):
            found = fastdl.ops.diffusion_step(
                x, m, t, DDPM, noise=n if seed is None else None, seed=seed, clip=1.0, return_log_prob=True
            )
            (found.prev_sample.sum() + found.log_prob.sum()).backward()
        fastdl.ops.diffusion_step(x, torch.cat((m, n)), t, DDPM, guidance_scale=2.0, guidance_rescale=0.5)
        fastdl.ops.diffusion_step(x.detach(), m, t, DDPM, threshold=(0.9, 2.0))
        fastdl.ops.add_noise(x, t, SCHEDULE)
        fastdl.ops.velocity(x, n, t, SCHEDULE)
        fastdl.ops.predict_x0(x, m, t, SCHEDULE, prediction_type="v_prediction")
        fastdl.ops.training_target(x, t, SCHEDULE, weighting="min_snr")


@pytest.mark.parametrize("how", ["each", "0-d copy", "1-d"])
@pytest.mark.parametrize(
    "name",
    [
        "DDPM",
        "DDIM",
        "DPMSolverMultistep",
        "EulerDiscrete",
        "EulerAncestralDiscrete",
        "FlowMatchEulerDiscrete",
    ],
)
def test_no_value_is_read_by_a_scheduler(name, how):
    scheduler = getattr(fastdl.diffusion, f"{name}Scheduler")()
    scheduler.set_timesteps(4)
    x = torch.randn(3, 2, 4, 4)
    with NoRead():
        for t in scheduler.timesteps:
            if how == "0-d copy":
                t = t.clone()
            elif how == "1-d":
                t = t.expand(3).clone()
            scaled = scheduler.scale_model_input(x, t)
            x = scheduler.step(torch.tanh(scaled), t, x).prev_sample
            scheduler.add_noise(x, torch.randn_like(x), scheduler.timesteps[:3])
    assert torch.isfinite(x).all()


def test_a_step_is_the_same_however_its_timestep_is_given():
    for name in ("DDPM", "DDIM", "DPMSolverMultistep", "EulerDiscrete", "EulerAncestralDiscrete"):
        found = []
        for give in (lambda t: t, lambda t: t.clone(), lambda t: t.item(), lambda t: t.expand(2).clone()):
            scheduler = getattr(fastdl.diffusion, f"{name}Scheduler")()
            scheduler.set_timesteps(5)
            x = torch.ones(2, 4)
            for i, t in enumerate(scheduler.timesteps):
                noise = torch.full_like(x, 0.1 * i)
                model_output = 0.3 * scheduler.scale_model_input(x, give(t))
                x = scheduler.step(model_output, give(t), x, variance_noise=noise).prev_sample
            found.append(x)
        assert all(torch.equal(x, found[0]) for x in found), name


@needs_cpu
def test_opcheck():
    x, m, n, t = inputs()
    m = torch.cat((m, n))
    table = DDPM.on(torch.device("cpu"))
    flags = 7 | schema.GUIDED | schema.CLIP
    seed = torch.tensor([1, 2])
    for rows in (None, t):
        arguments = (
            x.requires_grad_(),
            m.requires_grad_(),
            n,
            None,
            seed,
            rows,
            3,
            table,
            flags,
            2.0,
            0.0,
            1.0,
            0.9,
        )
        found = torch.library.opcheck(torch.ops.fastdl.diffusion_step.default, arguments)
        assert set(found.values()) == {"SUCCESS"}
        flags_back = schema.GUIDED | schema.CLIP | schema.NEED_SAMPLE | schema.NEED_MODEL
        arguments = (n, x.detach(), x.detach(), m.detach(), rows, 3, table, flags_back, 2.0, 1.0)
        found = torch.library.opcheck(torch.ops.fastdl.diffusion_step_backward.default, arguments)
        assert set(found.values()) == {"SUCCESS"}
    image = x.detach().to(memory_format=torch.channels_last)
    assert set(torch.library.opcheck(torch.ops.fastdl.normal_noise.default, (image, seed)).values()) == {
        "SUCCESS"
    }


def train(x, m, t, n):
    x_t, target, weight = fastdl.ops.training_target(x, t, SCHEDULE, noise=n, weighting="min_snr")
    found = fastdl.ops.diffusion_step(x_t, m, t, DDPM, noise=n, clip=1.0)
    return (found.prev_sample * target).sum() + found.x_0.square().sum() + weight.sum()


@pytest.mark.long
def test_compiled_whole_with_dynamic_shapes(dynamo):
    SCHEDULE.training("epsilon", "min_snr", 5.0)
    compiled = torch.compile(train, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (2, 3, 5):
        x, m, noise, t = inputs(n)
        a, b = m.clone().requires_grad_(), m.clone().requires_grad_()
        found, expected = compiled(x, a, t, noise), train(x, b, t, noise)
        torch.testing.assert_close(found, expected)
        found.backward(), expected.backward()
        torch.testing.assert_close(a.grad, b.grad)


def each_op() -> dict:
    """Functions of (x, n, t) whose results have a gradient: one output wanted, the other, or both."""
    return {
        "add_noise": lambda x, n, t: fastdl.ops.add_noise(x, t, SCHEDULE, noise=n),
        "velocity": lambda x, n, t: fastdl.ops.velocity(x, n, t, SCHEDULE),
        "predict_x0": lambda x, n, t: fastdl.ops.predict_x0(x, n, t, SCHEDULE),
        "predict_x0 clipped": lambda x, n, t: fastdl.ops.predict_x0(x, n, t, SCHEDULE, clip=1.0),
        "training_target": lambda x, n, t: fastdl.ops.training_target(
            x, t, SCHEDULE, noise=n, prediction_type="v_prediction"
        )[1],
    }


@pytest.mark.parametrize("name", each_op())
def test_compiled_gradients(name, dynamo):
    function = each_op()[name]
    x, n, _, t = inputs()
    x.requires_grad_(), n.requires_grad_()
    expected = function(x, n, t)
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(x, n, t)
    torch.testing.assert_close(found, expected)
    ours, eager = (torch.autograd.grad(y.square().sum(), (x, n)) for y in (found, expected))
    torch.testing.assert_close(ours, eager)


@pytest.mark.long
def test_compiled_noise_follows_the_seed(dynamo):
    SCHEDULE.adding_noise()
    compiled = torch.compile(
        lambda x, seed: fastdl.ops.add_noise(x, 3, SCHEDULE, seed=seed), fullgraph=True, backend="aot_eager"
    )
    x, seed = torch.zeros(2, 8), torch.tensor([4, 5])
    assert torch.equal(compiled(x, seed), fastdl.ops.add_noise(x, 3, SCHEDULE, seed=seed))


def test_function_transforms():
    x, m, n, t = inputs()

    def function(x, m, n):
        return fastdl.ops.diffusion_step(x, m, 7, DDPM, noise=n, clip=1.0).prev_sample

    expected = function(x, m, n)
    each = torch.vmap(lambda x, m, n: function(x[None], m[None], n[None])[0])(x, m, n)
    torch.testing.assert_close(each, expected)
    _, tangent = torch.func.jvp(lambda m: function(x, m, n), (m,), (torch.ones_like(m),))
    step = 1e-3
    numeric = function(x.double(), m.double() + step, n.double()) - function(
        x.double(), m.double(), n.double()
    )
    inside = (tangent != 0) & ((numeric / step - tangent).abs() < 1e-2)
    torch.testing.assert_close(tangent[inside].double(), numeric[inside] / step, rtol=1e-2, atol=1e-3)
    (gradient,) = torch.autograd.grad(function(x, m.requires_grad_(), n).sum(), m)
    torch.testing.assert_close(torch.func.grad(lambda m: function(x, m, n).sum())(m.detach()), gradient)
    rows = torch.vmap(lambda x, t: fastdl.ops.velocity(x[None], x[None], t, SCHEDULE)[0])(x, t)
    torch.testing.assert_close(rows, fastdl.ops.velocity(x, x, t, SCHEDULE))


def test_meta_tensors_have_shapes():
    x = torch.empty(4, 3, 8, 8, device="meta")
    found = torch.ops.fastdl.diffusion_step(
        x, x, None, None, None, None, 0, torch.empty(5, 9, device="meta"), 3, 1.0, 0.0, 1.0, 0.9
    )
    assert found[0].shape == found[1].shape == x.shape
