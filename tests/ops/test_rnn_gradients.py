"""gradcheck, gradgradcheck and opcheck of cells, variants and layouts, in fp64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from rnn_plans import (
    FUSED,
    KERNELS_ARE_COMPILED,
    OPS,
    Operators,
    arguments,
    flat,
    forced,
    fused_serves,
    kernels_in_python,
    leaves,
)

from fastdl.dispatch import Choice
from fastdl.ops.rnn.layer import run_layer
from fastdl.ops.rnn.reference import accumulate_dtype
from fastdl.testing.rnn import CELL_SAMPLES, SAMPLES, Inputs, Sample, plan_of, reports

SMALL = (
    Sample("lstm", 3, 2, 2, 3, directions=2, layout="packed"),
    Sample("lstm", 3, 2, 2, 3, layout="lengths", projection=2, layer_norm=True, peephole=True),
    Sample("lstm", 3, 2, 2, 3, zoneout=(0.2, 0.3), recurrent_dropout=0.3, reset=True, layout="batch"),
    Sample("lstm", 2, 2, 2, 3, zoneout=(0.2, 0.3), train=False, checkpoint=True, peephole=True),
    Sample("gru", 3, 2, 2, 3, directions=2, layout="packed", layer_norm=True),
    Sample("gru", 3, 2, 2, 3, layout="lengths", zoneout=(0.3, 0.0), recurrent_dropout=0.3, reset=True),
    Sample("gru", 2, 2, 2, 3, states=False, bias=False, checkpoint=True),
    Sample("rnn_tanh", 3, 2, 2, 3, directions=2, layout="batch", reset=True),
    Sample("rnn_tanh", 2, 2, 2, 3, layer_norm=True, zoneout=(0.2, 0.0)),
    Sample("rnn_relu", 3, 2, 2, 3, layout="lengths", recurrent_dropout=0.3),
    *CELL_SAMPLES[::3],
)


def differentiable(sample: Sample, dtype: torch.dtype = torch.float64, choice: tuple[str, str] = FUSED):
    """(function of the leaves, the leaves)"""
    q = sample.inputs(dtype)
    plan = plan_of(sample, Choice(*choice), dtype)
    given = [t.requires_grad_() for t in (*q[:3], *q.params) if t is not None]

    def layer(*tensors):
        rest = iter(tensors)
        states = [None if t is None else next(rest) for t in q[:3]]
        return run_layer(plan, *states, list(rest), q.context, True)[: 3 if sample.cell == "lstm" else 2]

    return layer, given


@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_gradcheck(sample):
    layer, given = differentiable(sample)
    with kernels_in_python():
        assert torch.autograd.gradcheck(layer, given, fast_mode=True)


@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_gradgradcheck(sample):
    layer, given = differentiable(dataclasses.replace(sample, T=min(sample.T, 2)))
    with kernels_in_python():
        assert torch.autograd.gradgradcheck(layer, given, fast_mode=True)


def second_derivatives(
    sample: Sample, dtype: torch.dtype, choice: tuple[str, str]
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    """First derivatives of the squares of the outputs, and of the squares of those the second ones."""
    layer, given = differentiable(sample, dtype, choice)
    first = torch.autograd.grad(sum(t.square().sum() for t in layer(*given)), given, create_graph=True)
    second = torch.autograd.grad(sum(t.square().sum() for t in first), given)
    return [t.detach() for t in first], second


@pytest.mark.isa
@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_second_derivatives_of_the_kernels(sample):
    """In float32, over the kernels' own outputs and gradients, beside the reference in float64."""
    with Operators() as seen:
        found = second_derivatives(sample, torch.float32, FUSED)
    assert {"fastdl::rnn_sequence", "fastdl::rnn_sequence_backward"} <= set(seen.names)
    expected = second_derivatives(sample, torch.float64, ("reference", "torch"))
    for ours, truth in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        scale = max(1.0, truth.abs().max().item())
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_float64_is_of_reference_quality(sample):
    """Backward from what forward saved, and the gradients made of products, against plain autograd."""
    with kernels_in_python():
        found = reports(sample, plan_of(sample, Choice(*FUSED), torch.float64), torch.float64)
    for quantity, report in found.items():
        assert report.relative_l2 < 1e-14, f"{quantity}: {report}"


def raw_arguments(q: Inputs, sample: Sample, dtype: torch.dtype, projected: bool) -> tuple:
    plan = plan_of(sample, Choice(*FUSED), dtype)
    s = sample.s._replace(projected=projected)
    weights = [w[n] for w in _directions(q, sample) for n in s.sequence_names()]
    gates = s.num_gates * sample.H * s.directions
    x = torch.randn(*q.x.shape[:-1], gates).to(dtype) if projected else q.x
    c_0 = None if q.c_0 is None else q.c_0.to(accumulate_dtype(dtype))
    return (x, q.h_0, c_0, weights), (*q.context[:6], s.packed(), plan.zoneout)


def _directions(q: Inputs, sample: Sample) -> list[dict[str, torch.Tensor]]:
    names = sample.s.names()
    n = len(names)
    return [dict(zip(names, q.params[d * n : (d + 1) * n], strict=True)) for d in range(sample.directions)]


OPCHECKED = (*SAMPLES[:11:2], *SAMPLES[13:21:2], *CELL_SAMPLES[:1])


@pytest.mark.parametrize("sample", OPCHECKED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(sample, dtype):
    """Schema, fake implementation and autograd registration of both raw operators."""
    if KERNELS_ARE_COMPILED and not fused_serves(sample, dtype):
        pytest.skip(f"the kernels have no {dtype}")
    for projected in (False, True) if not sample.layer_norm else (True,):
        tensors, rest = raw_arguments(sample.inputs(dtype), sample, dtype, projected)
        for save in (True, False):
            torch.library.opcheck(torch.ops.fastdl.rnn_sequence.default, (*tensors, *rest, save))
    output, h_n, c_n, *saved = torch.ops.fastdl.rnn_sequence(*tensors, *rest, True)
    grads = (torch.randn_like(output), torch.randn_like(h_n), torch.randn_like(c_n) if c_n.numel() else None)
    torch.library.opcheck(
        torch.ops.fastdl.rnn_sequence_backward.default, (*grads, *tensors[1:], output, *saved, *rest)
    )


@pytest.mark.parametrize("kind", OPS)
def test_only_what_needs_a_gradient_gets_one(kind):
    x, hx, params = arguments(kind, torch.float32, bidirectional=True)
    every = leaves(x, hx, params)
    with forced(FUSED):
        all_of_them = torch.autograd.grad(OPS[kind](x, hx, params, bidirectional=True)[0].sum(), every)
        for wanted in range(len(every)):
            alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(every)]
            count = len(flat(hx))
            given = alone[1] if count == 1 else tuple(alone[1 : 1 + count])
            output = OPS[kind](alone[0], given, alone[1 + count :], bidirectional=True)[0]
            (grad,) = torch.autograd.grad(output.sum(), [alone[wanted]])
            torch.testing.assert_close(grad, all_of_them[wanted], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("result", [0, 1, 2])
def test_gradients_through_each_result_alone(kind, result):
    x, hx, params = arguments(kind, torch.float64)
    count = len(flat(hx)) + 1
    if result >= count:
        pytest.skip("the cell has no c")
    found = []
    for plan in ("fused", "torch"):
        with kernels_in_python(), forced(FUSED if plan == "fused" else ("reference", "torch")):
            results = flat(OPS[kind](x, hx, params))
            loss = results[result].square().sum()
            found.append(torch.autograd.grad(loss, leaves(x, hx, params), allow_unused=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(
            torch.zeros(()) if a is None else a, torch.zeros_like(a) if b is None else b
        )


@pytest.mark.parametrize("kind", OPS)
def test_recomputing_gives_the_same_bits(kind):
    x, hx, params = arguments(kind, torch.float32, num_layers=2)
    found = []
    for checkpoint in (False, True):
        with forced(FUSED):
            results = OPS[kind](x, hx, params, num_layers=2, checkpoint=checkpoint)
        found.append([*results, *torch.autograd.grad(sum(t.sum() for t in results), leaves(x, hx, params))])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_recomputing_saves_less():
    x, hx, params = arguments("lstm", torch.float32, T=50, B=8, H=32)
    sizes = []
    for checkpoint in (False, True):
        kept = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
        )
        with forced(FUSED), hooks:
            fused = OPS["lstm"](x, hx, params, checkpoint=checkpoint)
        assert fused[0].requires_grad
        sizes.append(sum(kept))
    assert sizes[1] < sizes[0] / 5
