"""opcheck of the raw operators, torch.compile(fullgraph=True) with dynamic shapes, export, transforms, flops."""

from __future__ import annotations

import pytest
import torch
from linear_plans import KERNELS, PLANS, eager, forced, name
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.library import opcheck
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import fastdl
import fastdl.ops.flops  # noqa: F401, teaches the flop counter
from fastdl.ops import linear, products
from fastdl.testing.linear import SAMPLES, Sample

pytestmark = pytest.mark.usefixtures("dynamo")
ops = torch.ops.fastdl


def checked(operator, *args):
    assert set(opcheck(operator, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("code", "p"), [(0, 0.0), *((code, code % 2 * 0.3) for code in range(1, 7)), (0, 0.3)]
)
def test_opcheck(code, p):
    x, weight, bias = (t.requires_grad_() for t in SAMPLES[4].inputs(torch.float32))
    seed = torch.tensor([5]) if p else None
    grad, saved = torch.randn(2, 3, 11, 24), torch.rand(2, 3, 11, 24)
    for save in (False, True):
        checked(ops.linear.default, x, weight, bias, seed, code, p, save)
    checked(ops.linear_activation.default, saved, seed, code, p)
    for need_bias in (False, True):
        checked(ops.linear_activation_backward.default, grad, saved, seed, code, p, need_bias)
    checked(
        ops.linear_activation_backward.default,
        grad.transpose(0, 1),
        saved.transpose(0, 1),
        seed,
        code,
        p,
        True,
    )


@pytest.mark.parametrize(
    ("plan", "backend"),
    [
        *((plan, "aot_eager") for plan in PLANS),
        *(pytest.param(plan, "inductor", marks=pytest.mark.long) for plan in KERNELS),
    ],
    ids=lambda v: v if isinstance(v, str) else name(v),
)
def test_compiled_with_dynamic_shapes(plan, backend):
    """One graph for every batch; forward and backward equal eager's."""

    def network(call):
        return lambda x, weight, bias: call(x * 2, weight, bias, activation="silu").sin() + 1

    with forced(plan):
        compiled = torch.compile(network(linear), fullgraph=True, dynamic=True, backend=backend)
        for rows in (3, 5, 9):
            results = []
            for call in (compiled, network(eager)):
                inputs = [t.requires_grad_() for t in Sample((rows,), 20, 30).inputs(torch.float32)]
                output = call(*inputs)
                results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
            for ours, theirs in zip(*results, strict=True):
                assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_compiled_dropout_follows_the_generator(plan):
    x, weight, bias = SAMPLES[8].inputs(torch.float32)
    weight.requires_grad_()
    with forced(plan):
        compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
        results = []
        for call in (linear, compiled):
            torch.manual_seed(4)
            output = call(x, weight, bias, activation="relu", dropout_p=0.5)
            results.append((output, torch.autograd.grad(output.sum(), weight)[0]))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


def test_the_operator_is_in_the_graph():
    graphs = []

    def backend(graph_module, example_inputs):
        graphs.append(graph_module)
        return graph_module.forward

    x, weight, bias = SAMPLES[1].inputs(torch.float32)
    with forced(KERNELS[1]), torch.no_grad():
        torch.compile(linear, fullgraph=True, backend=backend)(x, weight, bias, activation="relu")
    assert any("fastdl.linear" in str(node.target) for node in graphs[0].graph.nodes)


def test_transforms_use_the_reference():
    x, weight, bias = SAMPLES[0].inputs(torch.float64)
    expected = eager(x, weight, bias, "gelu")
    assert_close(torch.vmap(lambda row: linear(row, weight, bias, activation="gelu"))(x), expected)
    tangent = torch.randn_like(x)
    _, forward = torch.func.jvp(lambda t: linear(t, weight, bias, activation="gelu"), (x,), (tangent,))
    _, truth = torch.func.jvp(lambda t: eager(t, weight, bias, "gelu"), (x,), (tangent,))
    assert_close(forward, truth)
    with dual_level():
        dual = linear(make_dual(x, tangent), weight, bias, activation="gelu")
        assert_close(unpack_dual(dual).tangent, truth)
    with fastdl.strict(), pytest.raises(fastdl.dispatch.UnsupportedError, match="functorch"):
        torch.vmap(lambda row: linear(row, weight, bias, activation="gelu"))(x)


def test_export_sees_standard_operators():
    exported = torch.export.export(fastdl.nn.LinearGELU(6, 4), (torch.randn(3, 6),))
    assert not any("fastdl" in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_flops(plan):
    x, weight, bias = (t.requires_grad_() for t in SAMPLES[1].inputs(torch.float32))
    with forced(plan), FlopCounterMode(display=False) as counter:
        linear(x, weight, bias, activation="relu").sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 64 * 128 * 96


@pytest.mark.parametrize("kind", [fastdl.nn.Linear, fastdl.nn.LinearReLU, fastdl.nn.LinearGELU])
def test_flops_of_a_large_layer(kind):
    """Where MKL leaves part of the CPU unused, the products are our own."""
    M, N, K = 128, 1024, 512
    assert products.large_enough(M, N, K)
    layer, x = kind(K, N), torch.randn(M, K, requires_grad=True)
    for recorded, times in ((False, 1), (True, 3)):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(recorded):
            output = layer(x)
            if recorded:
                output.sum().backward()
        assert counter.get_total_flops() == times * 2 * M * N * K
