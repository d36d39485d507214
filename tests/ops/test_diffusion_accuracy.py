"""The diffusion step on each backend: the error rule, gradients, layouts, edges of memory, threads."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import fastdl
from fastdl import _extension
from fastdl.ops.diffusion import Schedule, Table, schedules, schema, steps
from fastdl.ops.diffusion import registration as definition
from fastdl.ops.diffusion.table import COLUMNS
from fastdl.testing.diffusion import SAMPLES, Sample, reports
from tests.guarded import guarded

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((3, 4, 8, 8), (2, 3, 7, 5), (5, 1), (2, 31), (1, 513))
needs_cpu = pytest.mark.skipif(not _extension.cpu.loaded, reason="CPU kernels are not loaded")
step = torch.ops.fastdl.diffusion_step.default
backward = torch.ops.fastdl.diffusion_step_backward.default


def table() -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    columns = {name: torch.randn(7, generator=generator) for name in COLUMNS}
    return Table(7, **columns).on(torch.device("cpu"))


def close(ours: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, noisy: bool) -> None:
    assert ours.shape == expected.shape
    assert ours.dtype == expected.dtype
    if expected.numel() == 0:
        return
    # the deviates made in a kernel are fp32 numbers within two ulps of the definition's
    unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps if noisy else 0.0)
    # guidance and limits cancel: what is rounded is up to ten times the result
    scale = 10 * max(expected.double().abs().max().item(), 1.0)
    assert (ours.double() - expected.double()).abs().max().item() <= 4 * unit * scale


@needs_cpu
@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_error_rule(sample: Sample, dtype: torch.dtype):
    for name, report in reports(sample, "cpu", dtype).items():
        assert report.within_rule, f"{name}: {report}"


@needs_cpu
@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_part_of_a_step_is_the_definition(shape, dtype):
    generator = torch.Generator().manual_seed(3)

    def draw(batches: int = 1) -> torch.Tensor:
        return torch.randn(batches * shape[0], *shape[1:], generator=generator).to(dtype)

    for guided, history, noise, limit, rows in itertools.product(
        (0, 1), (0, 1), ("none", "given", "made"), (0, schema.CLIP, schema.THRESHOLD), ("int", "one", "each")
    ):
        flags = 7 | (schema.GUIDED if guided else 0) | limit
        where = {"int": None, "one": torch.tensor(3), "each": torch.arange(shape[0]) * 3 % 7}[rows]
        arguments = (
            draw(), draw(1 + guided), draw() if history else None, draw() if noise == "given" else None,
            torch.tensor([2**40 + 5, -7]) if noise == "made" else None, where, 2, table(), flags,
            2.5, 0.7 if guided else 0.0, 1.3, 0.9,
        )  # fmt: skip
        for ours, expected in zip(step(*arguments), definition.diffusion_step(*arguments), strict=True):
            close(ours, expected, dtype, noise == "made")
        if limit == schema.THRESHOLD:
            continue
        flags = flags & ~7 | 64 | 128 | 256 | 512
        arguments = (draw(), draw() if history else None, *arguments[:2], where, 2, table(), flags, 2.5, 1.3)
        found, expected = backward(*arguments), definition.diffusion_step_backward(*arguments)
        for a, b in zip(found, expected, strict=True):
            close(a, b, dtype, False)


@needs_cpu
@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_results_are_rounded_as_torch_rounds(dtype):
    """Every 16-bit number with a part below its last place: ties to even, overflow, subnormals, infinity, NaN."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).repeat(3, 1)
    below = torch.tensor([0.5, 0.25, -1.5], dtype=dtype)[:, None] * torch.finfo(dtype).eps
    n = (x.abs().clamp(max=2.0) * below).nan_to_num()
    coefficients = Table(1, SAMPLE=1.0, NOISE=2.0).on(torch.device("cpu"))
    found = step(x, None, None, n, None, None, 0, coefficients, schema.WANT_PREV, 1.0, 0.0, 1.0, 0.5)[0]
    expected = (x.float() + 2 * n.float()).to(dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~found.isnan()], expected[~expected.isnan()])
    x = x[~x.isinf()]  # times a coefficient of 0
    third = Table(1, SAMPLE=1 / 3).on(torch.device("cpu"))
    found = backward(x, None, None, None, None, 0, third, schema.NEED_SAMPLE, 1.0, 1.0)[0]
    expected = (x.float() * third[0, 3]).to(dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~found.isnan()], expected[~expected.isnan()])


@needs_cpu
@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_of_16_bits_is_that_of_32_rounded(dtype):
    found, whole = (
        torch.ops.fastdl.normal_noise.default(torch.empty(1000, dtype=d), torch.tensor([4, 2]))
        for d in (dtype, torch.float32)
    )
    assert torch.equal(found, whole.to(dtype))


def small_table() -> Table:
    return Table(3, **{name: torch.linspace(0.3, 1.1, 3) * (1 + i / 9) for i, name in enumerate(COLUMNS)})


@needs_cpu
@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("guidance", [None, 1.7])
def test_gradients(clip, guidance):
    generator = torch.Generator().manual_seed(0)
    plain = Table(3, **{name: small_table().column(name) for name in COLUMNS if name != "X0_NOISE"})

    def draw(n: int = 2) -> torch.Tensor:
        return torch.randn(n, 3, 2, dtype=torch.float64, generator=generator).requires_grad_()

    inputs = (draw(), draw(2 if guidance is None else 4), draw(), draw())

    def function(x, m, h, n):
        with fastdl.backend("cpu"):
            found = fastdl.ops.diffusion_step(
                x, m, torch.tensor([2, 0]), plain, history=h, noise=n, clip=clip, guidance_scale=guidance
            )
        return found.prev_sample, found.x_0

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    assert torch.autograd.gradcheck(lambda *a: function(*a)[0], inputs)  # no gradient for x_0
    assert torch.autograd.gradcheck(lambda *a: function(*a)[1], inputs)


def test_gradients_the_kernels_do_not_have_come_from_the_definition():
    x = torch.randn(2, 6, dtype=torch.float64).requires_grad_()
    m = torch.randn(4, 6, dtype=torch.float64).requires_grad_()

    def function(x, m):
        return fastdl.ops.diffusion_step(
            x, m, 1, small_table(), noise=torch.zeros_like(x), guidance_scale=2.0, guidance_rescale=0.7,
            threshold=(0.6, 5.0),
        ).prev_sample  # fmt: skip

    assert torch.autograd.gradcheck(function, (x, m))
    with fastdl.strict(), pytest.raises(fastdl.UnsupportedError, match="a gradient through"):
        function(x, m)


@needs_cpu
def test_a_sample_alone_is_the_sample_in_its_batch():
    x, m, n = torch.randn(3, 4, 3, 11, 5)
    t = torch.tensor([0, 2, 1, 2])
    for keywords in ({}, dict(clip=0.7), dict(threshold=(0.8, 3.0))):
        both = fastdl.ops.diffusion_step(x, m, t, small_table(), noise=n, **keywords).prev_sample
        for i in range(4):
            alone = fastdl.ops.diffusion_step(
                x[i : i + 1], m[i : i + 1], int(t[i]), small_table(), noise=n[i : i + 1], **keywords
            ).prev_sample
            assert torch.equal(alone[0], both[i])


@needs_cpu
def test_rows_for_each_token():
    x, m = torch.randn(2, 2, 3, 8)
    t = torch.tensor([[0, 1, 2], [2, 0, 0]])
    found = fastdl.ops.diffusion_step(x, m, t, small_table(), noise=torch.zeros_like(x)).prev_sample
    for b, k in itertools.product(range(2), range(3)):
        alone = fastdl.ops.diffusion_step(
            x[b : b + 1, k], m[b : b + 1, k], int(t[b, k]), small_table(), noise=torch.zeros(1, 8)
        ).prev_sample
        assert torch.equal(found[b, k], alone[0])


@needs_cpu
def test_the_memory_format_is_kept():
    x, m, n = (t.to(memory_format=torch.channels_last) for t in torch.randn(3, 2, 4, 6, 5))
    expected = fastdl.ops.diffusion_step(
        x.contiguous(), m.contiguous(), 1, small_table(), noise=n.contiguous()
    )
    found = fastdl.ops.diffusion_step(x, m.contiguous(), 1, small_table(), noise=n)
    assert found.prev_sample.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.prev_sample, expected.prev_sample)
    odd = torch.randn(2, 5, 6, 8)[:, 1:, :, ::2].transpose(2, 3)[:, :, :, :5].transpose(2, 3)
    assert torch.equal(
        fastdl.ops.diffusion_step(odd, m[:, :, :5, :4], 1, small_table(), noise=odd).x_0,
        fastdl.ops.diffusion_step(
            odd.contiguous(), m[:, :, :5, :4].contiguous(), 1, small_table(), noise=odd.contiguous()
        ).x_0,
    )


@needs_cpu
@pytest.mark.isa
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_outside_the_tensors_is_touched(dtype, before):
    for size in (1, 3, 31, 32, 33, 67):
        x, m, n = (guarded(torch.randn(2, size).to(dtype), before) for _ in range(3))
        m2 = guarded(torch.randn(4, size).to(dtype), before)
        rows = guarded(torch.tensor([1, 2]), before)
        for limit in (0, schema.CLIP, schema.THRESHOLD):
            step(x, m2, n, n, None, rows, 0, table(), 7 | schema.GUIDED | limit, 2.0, 0.5, 1.0, 0.9)
        backward(n, m, x, m2, rows, 0, table(), 64 | 128 | 256 | 512 | schema.GUIDED | schema.CLIP, 2.0, 1.0)


@needs_cpu
def test_results_do_not_depend_on_the_number_of_threads(threads):
    x, m = torch.randn(5, 3, 64, 64), torch.randn(10, 3, 64, 64)
    seed = torch.tensor([1, 2])
    arguments = (x, m, None, None, seed, torch.arange(5), 0, table())
    for limit in (0, schema.CLIP, schema.THRESHOLD):
        found = []
        for n in (1, 2, 3):
            threads(n)
            found.append(step(*arguments, 7 | schema.GUIDED | limit, 2.0, 0.5, 1.0, 0.99))
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_cpu
def test_empty_batches():
    for shape in ((0, 3, 4), (2, 0)):
        x = torch.empty(shape)
        for keywords in ({}, dict(threshold=(0.9, 1.0))):
            found = fastdl.ops.diffusion_step(x, x, 1, small_table(), noise=x, **keywords)
            assert found.prev_sample.shape == found.x_0.shape == shape


@needs_cpu
def test_nan_and_infinity_stay_where_they_are():
    x = torch.zeros(2, 100)
    x[0, 7], x[0, 9] = float("nan"), float("inf")
    clipped = fastdl.ops.diffusion_step(x, torch.zeros_like(x), 0, small_table(), noise=x * 0, clip=1.0).x_0
    assert clipped[0].isnan().nonzero().flatten().tolist() == [7, 9]  # inf * 0 is the noise's
    limited = fastdl.ops.diffusion_step(
        x, torch.zeros_like(x), 0, small_table(), noise=torch.zeros_like(x), threshold=(0.5, 1.0)
    ).x_0
    assert limited[0].isnan().all()
    assert not limited[1].isnan().any()


@needs_cpu
def test_a_term_of_coefficient_0_is_left_out_on_a_cpu():
    """x_0 has no noise in it: an infinite one does not reach it. In the formula 0 * inf is NaN."""
    x, noise = torch.ones(1, 2), torch.tensor([[math.inf, 2.0]])
    table = Table(1, X0_SAMPLE=1.0, SAMPLE=1.0, NOISE=1.0)
    with fastdl.backend("cpu"):
        found = fastdl.ops.diffusion_step(x, x, 0, table, noise=noise)
    assert found.x_0.tolist() == [[1.0, 1.0]]
    assert found.prev_sample.tolist() == [[math.inf, 3.0]]
    with fastdl.backend("reference"):
        truth = fastdl.ops.diffusion_step(x, x, 0, table, noise=noise)
    assert truth.x_0.isnan().tolist() == truth.prev_sample.isnan().tolist() == [[True, False]]


def test_guidance_rescale_of_a_constant_prediction():
    x, m = torch.randn(2, 8), torch.ones(4, 8)
    plain = fastdl.ops.diffusion_step(x, m, 0, small_table(), noise=x, guidance_scale=3.0).prev_sample
    found = fastdl.ops.diffusion_step(
        x, m, 0, small_table(), noise=x, guidance_scale=3.0, guidance_rescale=0.7
    ).prev_sample
    assert torch.equal(found, plain)


def test_threshold_is_torch_quantile():
    x = torch.randn(3, 500, dtype=torch.float64) * 2
    schedule = Schedule.flow(torch.tensor([0.0]))
    s = torch.quantile(x.abs(), 0.9, dim=1).clamp(1, 2.5)[:, None]
    found = fastdl.ops.predict_x0(
        x, torch.zeros_like(x), 0, schedule, prediction_type="flow_prediction", threshold=(0.9, 2.5)
    )
    torch.testing.assert_close(found, x.clamp(-s, s) / s)


def test_log_probability():
    schedule = Schedule.from_betas(schedules.betas("linear", 50))
    ddpm = steps.ddpm(schedule, torch.arange(-1, 49), "epsilon")
    x, m = torch.randn(2, 3, 40), torch.randn(2, 3, 40).requires_grad_()
    t = torch.tensor([30, 0])
    found = fastdl.ops.diffusion_step(x, m, t, ddpm, seed=torch.tensor([3, 4]), return_log_prob=True)
    mean = fastdl.ops.diffusion_step(x, m, t, ddpm, noise=torch.zeros_like(x)).prev_sample
    normal = torch.distributions.Normal(mean[0].detach(), ddpm.column("VALUE")[30])
    expected = normal.log_prob(found.prev_sample[0].detach()).sum()
    torch.testing.assert_close(found.log_prob[0], expected)
    assert found.log_prob[1] == 0  # no noise, no density
    again = fastdl.ops.diffusion_step(x, m, t, ddpm, prev_sample=found.prev_sample, return_log_prob=True)
    torch.testing.assert_close(again.log_prob, found.log_prob)
    (gradient,) = torch.autograd.grad(again.log_prob.sum(), m)
    assert gradient[0].abs().max() > 0
    assert torch.equal(gradient[1], torch.zeros(3, 40))


def test_samples_of_one_number_each():
    x, n = torch.randn(2, 5, dtype=torch.float64)
    keywords = dict(noise=n, threshold=(0.9, 1.5), return_log_prob=True)
    with fastdl.backend("reference"):
        found = fastdl.ops.diffusion_step(x, x, 1, small_table(), **keywords)
        expected = fastdl.ops.diffusion_step(
            x[:, None], x[:, None], 1, small_table(), **{**keywords, "noise": n[:, None]}
        )
    assert torch.equal(found.prev_sample, expected.prev_sample[:, 0])
    assert torch.equal(found.log_prob, expected.log_prob)


@needs_cpu
def test_this_backend_ran():
    x = torch.randn(2, 8)
    with fastdl.backend("cpu"):
        fastdl.ops.add_noise(x, 1, Schedule.flow(torch.tensor([0.1, 0.5])))
    explained = fastdl.explain("diffusion_step", x, x, 0, small_table())
    assert (explained.backend, explained.algorithm) == ("cpu", "fused")
