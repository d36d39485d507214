"""opcheck of the raw operators, torch.compile(fullgraph=True) with dynamic shapes, and its guards."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from conv_relu_maxpool_plans import COMPOSED, DIRECT, KERNELS, PLANS, WINOGRAD, eager, forced
from torch.library import opcheck
from torch.testing import assert_close

import fastdl
from fastdl.nn import ConvReLUMaxPool2d
from fastdl.ops import conv_relu_maxpool
from fastdl.ops.conv_relu_maxpool import backends
from fastdl.testing.conv_relu_maxpool import SAMPLES, Sample

pytestmark = pytest.mark.usefixtures("dynamo")

BLOCK = dict(padding=1, pool_size=2)
CODES = {plan: backends.ALGORITHMS[plan.algorithm] for plan in KERNELS if plan != COMPOSED}
OPCHECK_SAMPLES = [*SAMPLES[:6], SAMPLES[12], SAMPLES[13]]


def checked(operator, *args):
    assert set(opcheck(operator, args).values()) == {"SUCCESS"}


def tensors(sample, dtype=torch.float32, grad=True):
    x, weight, bias = sample.inputs(dtype)
    drawn = [t if t is None else t.requires_grad_(grad) for t in (x, weight, bias)]
    return *drawn, sample.geometry(x, weight, bias)


@pytest.mark.parametrize("sample", OPCHECK_SAMPLES, ids=str)
@pytest.mark.parametrize("save_record", [False, True], ids=["inference", "training"])
def test_opcheck_bias_relu_maxpool(sample, save_record):
    x, weight, bias, g = tensors(sample)
    conv = torch.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups).detach()
    operator = torch.ops.fastdl.bias_relu_maxpool.default
    checked(operator, conv.requires_grad_(), bias, g.packed_pool(), save_record)


@pytest.mark.parametrize("sample", OPCHECK_SAMPLES, ids=str)
@pytest.mark.parametrize("grad_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_opcheck_bias_relu_maxpool_backward(sample, grad_format):
    """Also where grad_output comes in another memory format than what was saved."""
    x, weight, bias, g = tensors(sample, grad=False)
    conv = torch.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups)
    output, record = torch.ops.fastdl.bias_relu_maxpool(conv, bias, g.packed_pool(), True)
    grad_output = torch.randn(output.shape).to(memory_format=grad_format).requires_grad_()
    saved = record if g.pool_size else output
    operator = torch.ops.fastdl.bias_relu_maxpool_backward.default
    checked(operator, grad_output, saved, *conv.shape[2:], g.packed_pool())


@pytest.mark.parametrize("plan", CODES, ids=str)
@pytest.mark.parametrize("sample", OPCHECK_SAMPLES, ids=str)
@pytest.mark.parametrize("save_record", [False, True], ids=["inference", "training"])
def test_opcheck_conv_relu_maxpool(plan, sample, save_record):
    if not plan.serves(sample, torch.float32):
        pytest.skip(f"{plan} does not serve this sample")
    x, weight, bias, g = tensors(sample)
    checked(torch.ops.fastdl.conv_relu_maxpool.default, x, weight, bias, g.packed(), CODES[plan], save_record)


BACKWARDS = [(WINOGRAD, (True, True, True)), (WINOGRAD, (False, True, False)), (DIRECT, (False, True, True))]


@pytest.mark.parametrize(("plan", "needs"), [b for b in BACKWARDS if b[0] in CODES], ids=str)
@pytest.mark.parametrize("sample", OPCHECK_SAMPLES, ids=str)
@pytest.mark.parametrize("grad_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_opcheck_conv_relu_maxpool_backward(plan, sample, needs, grad_format):
    if not plan.serves(sample, torch.float32):
        pytest.skip(f"{plan} does not serve this sample")
    x, weight, bias, g = tensors(sample, grad=False)
    output, record = torch.ops.fastdl.conv_relu_maxpool(x, weight, bias, g.packed(), CODES[plan], True)
    grad_output = torch.randn(output.shape).to(memory_format=grad_format).requires_grad_()
    saved = record if g.pool_size else output
    operator = torch.ops.fastdl.conv_relu_maxpool_backward.default
    checked(
        operator,
        grad_output,
        x.requires_grad_(),
        weight.requires_grad_(),
        saved,
        g.packed(),
        CODES[plan],
        *needs,
    )


def gradients(call, sample, N, dtype=torch.float32, **kwargs):
    sample = Sample(
        N, sample.C, sample.H + 2 * N, sample.W, sample.C_out, sample.K, sample.bias, sample.channels_last
    )
    inputs = [t.requires_grad_() for t in sample.inputs(dtype) if t is not None]
    output = call(*inputs, **kwargs)
    return output, *torch.autograd.grad(output.square().sum(), inputs)


@pytest.mark.long
@pytest.mark.parametrize("plan", KERNELS, ids=str)
@pytest.mark.parametrize("sample", [SAMPLES[0], SAMPLES[3], SAMPLES[5], SAMPLES[12]], ids=str)
def test_aot_eager_with_dynamic_shapes(plan, sample):
    """One graph for every batch and height; forward and backward equal eager's."""
    if not plan.serves(sample, torch.float32):
        pytest.skip(f"{plan} does not serve this sample")
    with forced(plan):
        compiled = torch.compile(conv_relu_maxpool, fullgraph=True, dynamic=True, backend="aot_eager")
        for N in (2, 3, 5):
            results = gradients(compiled, sample, N, **sample.kwargs)
            for ours, theirs in zip(results, gradients(eager, sample, N, **sample.kwargs), strict=True):
                assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


INDUCTOR = [
    pytest.param(plan, channels_last, id=f"{plan}-{'nhwc' if channels_last else 'nchw'}", marks=mark)
    for plan in KERNELS
    for channels_last in (False, True)
    for mark in [pytest.mark.long if (plan, channels_last) == (KERNELS[-1], True) else pytest.mark.slow]
]


@pytest.mark.parametrize(("plan", "channels_last"), INDUCTOR)
def test_inductor_with_dynamic_shapes(plan, channels_last):
    """A module between others, so that Inductor plans the buffers around it."""
    sample = Sample(2, 16, 12, 12, 16, channels_last=channels_last)

    def network(call):
        def run(x, weight, bias, **kwargs):
            return call(x * 2, weight, bias, **kwargs).sin() + 1

        return run

    with forced(plan):
        compiled = torch.compile(network(conv_relu_maxpool), fullgraph=True, dynamic=True)
        for N in (2, 3):
            results = gradients(compiled, sample, N, **BLOCK)
            for ours, theirs in zip(results, gradients(network(eager), sample, N, **BLOCK), strict=True):
                assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_the_operator_is_in_the_graph_and_ran(plan):
    graphs = []

    def backend(graph_module, example_inputs):
        graphs.append(graph_module)
        return graph_module.forward

    x, weight, bias = SAMPLES[2].inputs(torch.float32)
    with forced(plan), torch.no_grad():
        output = torch.compile(conv_relu_maxpool, fullgraph=True, backend=backend)(x, weight, bias, **BLOCK)
    called = {str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"}
    assert any("fastdl" in name for name in called) == plan.raw_operators
    assert_close(output, eager(x, weight, bias, **BLOCK), rtol=1e-4, atol=1e-4)


def test_settings_are_guarded():
    """A compiled call follows backend(), precision() and strict() like an eager one: it is traced anew."""
    x, weight, bias = SAMPLES[2].inputs(torch.float32)
    compiled = torch.compile(conv_relu_maxpool, fullgraph=True, backend="eager")
    seen = {}
    for name, context in {
        "default": fastdl.strict(False),
        "reference": fastdl.backend("reference"),
        "precise": fastdl.precision("strict"),
        "again": fastdl.strict(False),
    }.items():
        with context:
            seen[name] = compiled(x, weight, bias, **BLOCK)
            assert_close(seen[name], conv_relu_maxpool(x, weight, bias, **BLOCK), rtol=0, atol=0)
    assert_close(seen["default"], seen["again"], rtol=0, atol=0)
    with fastdl.strict(), fastdl.backend("reference"):
        assert_close(compiled(x, weight, bias, **BLOCK), seen["reference"], rtol=0, atol=0)


def test_settings_inside_a_compiled_function():
    x, weight, bias = SAMPLES[2].inputs(torch.float32)

    def call(x):
        with fastdl.precision("strict"), fastdl.backend("reference"):
            y = conv_relu_maxpool(x, weight, bias, **BLOCK)
        return y, conv_relu_maxpool(x, weight, bias, **BLOCK)

    compiled = torch.compile(call, fullgraph=True, backend="eager")
    for _ in range(2):
        for ours, same in zip(compiled(x), call(x), strict=True):
            assert_close(ours, same, rtol=0, atol=0)
        assert (fastdl.dispatch.settings.backend, fastdl.dispatch.settings.precision) == (None, "default")


def test_dynamic_shapes_do_not_recompile():
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(conv_relu_maxpool, fullgraph=True, dynamic=True, backend=counter)
    _, weight, bias = SAMPLES[2].inputs(torch.float32)
    for N, H in ((2, 18), (3, 19), (7, 30), (4, 21)):
        compiled(torch.randn(N, 16, H, H), weight, bias, **BLOCK)
    assert counter.frame_count == 1


def test_autocast_inside_compile():
    x, weight, bias = SAMPLES[2].inputs(torch.float32)

    def call(x, weight, bias):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return conv_relu_maxpool(x, weight, bias, **BLOCK)

    output = torch.compile(call, fullgraph=True, backend="aot_eager")(x, weight, bias)
    assert output.dtype == torch.bfloat16
    assert_close(output, call(x, weight, bias), rtol=0, atol=0)


def test_return_indices_and_unbatched_inside_compile():
    x, weight, bias = SAMPLES[2].inputs(torch.float32)
    compiled = torch.compile(conv_relu_maxpool, fullgraph=True, backend="aot_eager")
    for argument in (x, x[0]):
        output, indices = compiled(argument, weight, bias, **BLOCK, return_indices=True)
        expected, expected_indices = conv_relu_maxpool(argument, weight, bias, **BLOCK, return_indices=True)
        assert_close(output, expected, rtol=0, atol=0)
        assert_close(indices, expected_indices, rtol=0, atol=0)


def test_a_module_compiles_and_its_weights_stay_its_own():
    module = ConvReLUMaxPool2d(16, 16, 3, padding=1, pool_size=2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 16, 10, 10)
    for _ in range(2):
        assert_close(compiled(x), eager(x, module.weight, module.bias, **BLOCK), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            module.weight.mul_(-1)


@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_a_double_backward_through_compile_raises(plan):
    """AOTAutograd refuses it for every operator; what matters is that nothing wrong comes out."""
    x, weight, bias = (t.requires_grad_() for t in SAMPLES[2].inputs(torch.float32))

    def twice(output):
        (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)

    with forced(plan):
        twice(conv_relu_maxpool(x, weight, bias, **BLOCK))
        compiled = torch.compile(conv_relu_maxpool, fullgraph=True, backend="aot_eager")
        with pytest.raises(RuntimeError, match="double backward"):
            twice(compiled(x, weight, bias, **BLOCK))
