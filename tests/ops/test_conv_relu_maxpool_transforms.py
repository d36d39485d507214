"""functorch, forward mode, fake and meta tensors, subclasses, export: the reference's answer everywhere."""

from __future__ import annotations

import io

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from conv_relu_maxpool_plans import OP, PLANS, eager, forced
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.testing import assert_close

import fastdl
from fastdl.nn import ConvReLUMaxPool2d
from fastdl.ops import conv_relu_maxpool
from fastdl.testing.conv_relu_maxpool import Sample

BLOCK = dict(padding=1, pool_size=2)


def inputs(dtype=torch.float64):
    return Sample(3, 8, 6, 6, 8).inputs(dtype)


def dual(op):
    x, weight, bias = inputs()
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(
            op(forward_ad.make_dual(x, torch.ones_like(x)), weight, bias, **BLOCK)
        ).tangent


def batched(op):
    x, weight, bias = inputs()
    return vmap(lambda x: op(x, weight, bias, **BLOCK))(torch.stack([x, -x]))


def batched_weight(op):
    x, weight, bias = inputs()
    return vmap(lambda w, b: op(x, w, b, **BLOCK))(torch.stack([weight, -weight]), torch.stack([bias, bias]))


def gradient(op):
    x, weight, bias = inputs()
    return grad(lambda x: op(x, weight, bias, **BLOCK).square().sum())(x)


def per_sample_gradients(op):
    x, weight, bias = inputs()
    return vmap(grad(lambda w, x: op(x[None], w, bias, **BLOCK).square().sum()), (None, 0))(weight, x)


def forward_mode(op):
    x, weight, bias = inputs()
    return jvp(lambda x, w: op(x, w, bias, **BLOCK), (x, weight), (torch.ones_like(x), weight))[1]


def second_derivative(op):
    x, weight, bias = inputs()
    return hessian(lambda b: op(x, weight, b, **BLOCK).square().sum())(bias)


def jacobian(op):
    x, weight, bias = inputs()
    return jacrev(lambda b: op(x, weight, b, **BLOCK).flatten())(bias)


def indices_under_vmap(op):
    x, weight, bias = inputs()
    return vmap(lambda x: op(x, weight, bias, **BLOCK, return_indices=True)[1])(torch.stack([x, -x]))


TRANSFORMS = [
    dual, batched, batched_weight, gradient, per_sample_gradients, forward_mode, second_derivative, jacobian,
    indices_under_vmap,
]  # fmt: skip


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.__name__)
def test_transforms_equal_the_reference(transform):
    ours, theirs = transform(conv_relu_maxpool), transform(eager)
    assert ours.count_nonzero() > 0
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_functional_call_with_other_parameters():
    module = ConvReLUMaxPool2d(8, 8, 3, padding=1, pool_size=2)
    x, weight, bias = inputs(torch.float32)
    output = functional_call(module, dict(weight=weight, bias=bias), (x,))
    assert_close(output, eager(x, weight, bias, **BLOCK), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transform", [batched, forward_mode], ids=lambda t: t.__name__)
def test_strict_and_forced_backends_refuse_a_transform(transform):
    """Only the reference serves one: where it is not allowed, the call raises instead of using it quietly."""
    with fastdl.strict(), pytest.raises(fastdl.UnsupportedError):
        transform(conv_relu_maxpool)
    with fastdl.backend("cpu"), pytest.raises(fastdl.UnsupportedError):
        transform(conv_relu_maxpool)
    with fastdl.backend("reference"):
        transform(conv_relu_maxpool)


class Tagged(torch.Tensor):
    """A subclass that must survive the call, as it does in eager."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_subclass_is_served_by_the_reference():
    x, weight, bias = inputs()
    tagged = x.as_subclass(Tagged)
    output = conv_relu_maxpool(tagged, weight, bias, **BLOCK)
    assert type(output) is Tagged
    assert_close(output.as_subclass(torch.Tensor), eager(x, weight, bias, **BLOCK), rtol=0, atol=0)


def test_explain_names_the_subclass():
    x, weight, bias = inputs(torch.float32)
    explanation = fastdl.explain(OP, x.as_subclass(Tagged), weight, bias, **BLOCK)
    assert explanation.backend == "reference"
    assert all("Tagged" in reason for _, _, reason in explanation.refused)


def test_strict_refuses_a_subclass():
    x, weight, bias = inputs(torch.float32)
    with fastdl.strict(), pytest.raises(fastdl.UnsupportedError, match="Tagged"):
        conv_relu_maxpool(x.as_subclass(Tagged), weight, bias, **BLOCK)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("pool_size", [2, None], ids=["pool", "no pool"])
def test_fake_tensors_have_the_real_shapes_and_strides(plan, channels_last, pool_size):
    sample = Sample(2, 8, 9, 10, 12, channels_last=channels_last)
    wanted = dict(padding=1, pool_size=pool_size, return_indices=pool_size is not None)

    def run(*tensors):
        tensors = [t.requires_grad_() for t in tensors]
        output = conv_relu_maxpool(*tensors, **wanted)
        output, indices = output if pool_size else (output, None)
        return output, indices, *torch.autograd.grad(output.sum(), tensors)

    with forced(plan):
        real = run(*sample.inputs(torch.float32))
        with FakeTensorMode() as mode:
            fake = run(*(mode.from_tensor(t) for t in sample.inputs(torch.float32)))
    for r, f in zip(real, fake, strict=True):
        if r is not None:
            assert (f.shape, f.stride(), f.dtype, f.device) == (r.shape, r.stride(), r.dtype, r.device)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_meta_tensors(channels_last):
    real = Sample(2, 8, 9, 10, 12, channels_last=channels_last).inputs(torch.float32)
    output, indices = conv_relu_maxpool(*(t.to("meta") for t in real), **BLOCK, return_indices=True)
    expected, expected_indices = eager(*real, **BLOCK, return_indices=True)
    assert (output.shape, output.dtype, output.device.type) == (expected.shape, expected.dtype, "meta")
    assert (indices.shape, indices.dtype) == (expected_indices.shape, expected_indices.dtype)


def test_export_sees_plain_torch():
    """An exported program runs where fastdl is not installed."""
    module = ConvReLUMaxPool2d(3, 8, 3, padding=1, pool_size=2).eval()
    x = torch.randn(2, 3, 8, 8)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("N")},))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("fastdl" in name for name in called), called
    larger = torch.randn(5, 3, 8, 8)
    assert_close(program.module()(larger), module(larger), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_onnx_export_shows_conv_relu_maxpool():
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    module = ConvReLUMaxPool2d(3, 8, 3, padding=1, pool_size=2).eval()
    program = torch.onnx.export(module, (torch.randn(2, 3, 8, 8),), dynamo=True, verbose=False)
    buffer = io.BytesIO()
    program.save(buffer)
    operators = [node.op_type for node in onnx.load_from_string(buffer.getvalue()).graph.node]
    assert operators == ["Conv", "Relu", "MaxPool"]


def test_jit_trace_gives_the_same():
    module = ConvReLUMaxPool2d(3, 8, 3, padding=1, pool_size=2).eval()
    x = torch.randn(2, 3, 8, 8)
    traced = torch.jit.trace(module, x)
    with fastdl.backend("reference"):
        expected = module(x + 1)
    assert_close(traced(x + 1), expected, rtol=0, atol=0)
