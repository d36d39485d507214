"""functorch, forward mode, fake and meta tensors, subclasses, export, flops: the reference's answer everywhere."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from conv2d_plans import ONEDNN, PLANS, WINOGRAD, call, eager, forced, name, skip_unless_it_serves, tensors_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, hessian, jvp, vmap
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import fastdl
import fastdl.ops.flops  # the counter may have been imported after fastdl
from fastdl.ops import conv2d
from fastdl.testing.conv2d import ALL, SAME, Sample

SAMPLE = Sample(3, 8, 6, 6, 8, kwargs=SAME, scale=True, residual=True)


TENSORS = tensors_of(SAMPLE, torch.float64)


def with_part(op, part, t):
    """The call with one of x, weight, bias, scale and residual replaced."""
    tensors = list(TENSORS)
    tensors[part] = t
    return call(op, SAMPLE, tensors)


def batched(op, part, t):
    return vmap(lambda t: with_part(op, part, t))(torch.stack([t, 2 * t]))


def gradient(op, part, t):
    return grad(lambda t: with_part(op, part, t).square().sum())(t)


def forward_mode(op, part, t):
    return jvp(lambda t: with_part(op, part, t), (t,), (torch.ones_like(t),))[1]


def dual(op, part, t):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(t, torch.ones_like(t))
        return forward_ad.unpack_dual(with_part(op, part, dual)).tangent


def second_derivative(op, part, t):
    return hessian(lambda u: with_part(op, part, t * u).square().sum())(torch.ones((), dtype=t.dtype))


@pytest.mark.parametrize("part", range(5), ids=["x", "weight", "bias", "scale", "residual"])
@pytest.mark.parametrize(
    "transform", [batched, gradient, forward_mode, dual, second_derivative], ids=lambda t: t.__name__
)
def test_transforms_equal_the_reference(transform, part):
    """Also of one tensor alone, once the same call without a transform has been planned."""
    t = tensors_of(SAMPLE, torch.float64)[part]
    call(conv2d, SAMPLE, tensors_of(SAMPLE, torch.float64))
    ours, theirs = transform(conv2d, part, t), transform(eager, part, t)
    assert ours.count_nonzero() > 0
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_strict_and_forced_backends_refuse_a_transform():
    t = tensors_of(SAMPLE, torch.float64)[3]
    for setting in (fastdl.strict(), fastdl.backend("cpu")):
        with setting, pytest.raises(fastdl.UnsupportedError):
            batched(conv2d, 3, t)


class Tagged(torch.Tensor):
    """A subclass that must survive the call, as it does in eager."""


@pytest.mark.parametrize("part", [0, 1, 3, 4], ids=["x", "weight", "scale", "residual"])
def test_a_subclass_is_served_by_the_reference(part):
    tensors = list(tensors_of(SAMPLE))
    call(conv2d, SAMPLE, tensors)
    expected = call(eager, SAMPLE, tensors)
    tensors[part] = tensors[part].as_subclass(Tagged)
    output = call(conv2d, SAMPLE, tensors)
    assert type(output) is Tagged
    assert_close(output.as_subclass(torch.Tensor), expected, rtol=0, atol=0)
    with fastdl.strict(), pytest.raises(fastdl.UnsupportedError, match="Tagged"):
        call(conv2d, SAMPLE, tensors)


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_fake_tensors_have_the_real_shapes_and_strides(plan, channels_last):
    sample = Sample(2, 8, 9, 10, 12, channels_last=channels_last, kwargs=SAME, **ALL)
    skip_unless_it_serves(plan, sample)
    if plan == ONEDNN:
        pytest.skip("a fake weight has no fingerprint")

    def run(tensors):
        leaves = [t.requires_grad_() for t in tensors]
        with torch.no_grad():
            inference = call(conv2d, sample, leaves)
        output = call(conv2d, sample, leaves)
        return inference, output, *torch.autograd.grad(output.sum(), leaves)

    with forced(plan):
        real = run(tensors_of(sample))
        with FakeTensorMode() as mode:
            fake = run([mode.from_tensor(t) for t in tensors_of(sample)])
    for r, f in zip(real, fake, strict=True):
        assert (f.shape, f.dtype, f.device) == (r.shape, r.dtype, r.device)
    for r, f in zip(real[:3], fake[:3], strict=True):
        assert f.stride() == r.stride()


def test_meta_tensors():
    output = call(conv2d, SAMPLE, [t.to("meta") for t in tensors_of(SAMPLE)])
    assert (output.shape, output.dtype, output.device.type) == ((3, 8, 6, 6), torch.float32, "meta")


class Block(torch.nn.Conv2d):
    def forward(self, x):
        return conv2d(x, self.weight, self.bias, padding=1, scale=self.bias, residual=x, activation="relu")


def test_export_sees_plain_torch():
    """An exported program runs where fastdl is not installed."""
    module, x = Block(8, 8, 3).eval(), torch.randn(2, 8, 8, 8)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("N")},))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("fastdl" in target for target in called), called
    larger = torch.randn(5, 8, 8, 8)
    assert_close(program.module()(larger), module(larger), rtol=1e-4, atol=1e-4)


def test_flops_are_those_of_eager():
    sample, counts = Sample(2, 16, 9, 10, 12, kwargs=SAME, residual=True), []
    for op in (eager, conv2d):
        tensors = [None if t is None else t.requires_grad_() for t in tensors_of(sample)]
        with forced(WINOGRAD), FlopCounterMode(display=False) as counter:
            call(op, sample, tensors).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_jit_trace_gives_the_same():
    module, x = Block(8, 8, 3).eval(), torch.randn(2, 8, 8, 8)
    traced = torch.jit.trace(module, x)
    assert_close(traced(x + 1), module(x + 1), rtol=1e-4, atol=1e-4)
