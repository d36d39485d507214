"""Derivatives of attention: numerically in fp64, second ones, compiled, under transforms and autocast."""

from __future__ import annotations

import pytest
import torch

import fastdl
from fastdl import _extension
from fastdl.dispatch import Choice
from fastdl.ops.attention import backends
from fastdl.ops.attention.call import Call
from fastdl.ops.attention.op import Attention
from fastdl.ops.attention.reference import reference
from fastdl.ops.attention.reference_backward import Saved, reference_backward

CALLS = {
    "plain": Call(0.5),
    "causal": Call(0.5, "bottom_right", (3, -1)),
    "everything": Call(0.5, "top_left", (-1, -1), 2.0, 0.2),
}


def inputs(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 5, 3), (2, 2, 7, 3), (2, 2, 7, 6), (1, 4, 1, 7), (4,))
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


@pytest.fixture
def float64(monkeypatch):
    """The reference in the place of the raw operators: the kernels have no float64."""

    def forward(plan, q, k, v, context):
        return reference(q, k, v, context, plan.call)

    def backward(plan, grad_output, grad_lse, q, k, v, output, lse, context, need_bias, need_sink):
        saved = Saved(output, lse)
        return reference_backward(
            grad_output, grad_lse, q, k, v, saved, context, plan.call, need_bias, need_sink
        )

    monkeypatch.setattr(backends, "forward", forward)
    monkeypatch.setattr(backends, "backward", backward)


def through_functions(call: Call):
    """The two autograd Functions."""
    plan = backends.make_plan(Choice("cpu", "flash"), call)
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.7
    seed = torch.tensor([3]) if call.dropout_p else None

    def run(q, k, v, bias, sink):
        return Attention.apply(q, k, v, mask, bias, None, sink, seed, None, None, plan)

    return run


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CALLS)
def test_gradients_numerically(name):
    assert torch.autograd.gradcheck(through_functions(CALLS[name]), inputs(), fast_mode=True)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CALLS)
def test_second_derivatives_numerically(name):
    assert torch.autograd.gradgradcheck(through_functions(CALLS[name]), inputs(), fast_mode=True)


@pytest.mark.usefixtures("float64")
def test_only_what_is_needed():
    q, k, v, bias, sink = inputs()
    for wanted in ([q], [bias], [sink, v]):
        output, _ = through_functions(CALLS["plain"])(q, k, v, bias, sink)
        found = torch.autograd.grad(output.sum(), wanted)
        assert all(g.shape == t.shape for g, t in zip(found, wanted, strict=True))


def attend(q, k, v, bias=None, sink=None, scale=None):
    return fastdl.ops.attention(
        q, k, v, bias=bias, sink=sink, causal="bottom_right", scale=scale, enable_gqa=True
    )


@pytest.mark.long
@pytest.mark.parametrize("scale", [None, 0.3])
def test_compiles_whole_with_dynamic_shapes(dynamo, scale):
    def total(*tensors, scale=scale):
        return attend(*tensors, scale=scale).sum()

    compiled = torch.compile(total, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (5, 8):
        tensors = [t.detach().requires_grad_() for t in inputs(torch.float32)]
        tensors[0] = torch.randn(2, 4, length, 3, requires_grad=True)
        ours = torch.autograd.grad(compiled(*tensors, scale=scale), tensors)
        plain = torch.autograd.grad(total(*tensors), tensors)
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b)


def test_transforms_see_the_reference():
    q, k, v, _, _ = (t.detach() for t in inputs())
    batched = torch.vmap(attend)(torch.stack([q, -q]), torch.stack([k, k]), torch.stack([v, v]))
    torch.testing.assert_close(batched[1], attend(-q, k, v))
    _, tangent = torch.func.jvp(lambda q: attend(q, k, v), (q,), (torch.ones_like(q),))
    step = 1e-6
    numeric = (attend(q + step, k, v) - attend(q - step, k, v)) / (2 * step)
    torch.testing.assert_close(tangent, numeric, rtol=1e-6, atol=1e-6)


def test_autocast_gives_its_dtype():
    q, k, v, _, _ = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output, lse = fastdl.ops.attention(q, k, v, enable_gqa=True, return_lse=True)
    assert output.dtype is torch.bfloat16
    assert lse.dtype is torch.float32


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    q, k, v, bias, sink = inputs(torch.float32 if _extension.cpu.loaded else torch.float64)
    call = CALLS[name]
    seed = torch.tensor([3]) if call.dropout_p else None
    context = (None, bias, None, sink, seed, None, None)
    arguments = (q, k, v, *context, call.packed_integers(), call.packed_numbers())
    for result in torch.library.opcheck(torch.ops.fastdl.attention.default, arguments).values():
        assert result == "SUCCESS"
    with torch.no_grad():
        output, lse = torch.ops.fastdl.attention(*arguments)
    backward = (
        torch.ones_like(output),
        torch.ones_like(lse),
        *arguments[:3],
        output,
        lse,
        *arguments[3:],
        True,
        True,
    )
    for result in torch.library.opcheck(torch.ops.fastdl.attention_backward.default, backward).values():
        assert result == "SUCCESS"


def test_strict_precision_refuses_recomputed_scores_in_training():
    q, k, v, _, _ = inputs(torch.float32)
    with fastdl.precision("strict"):
        refused = {b: r for b, _, r in fastdl.explain("attention", q, k, v, enable_gqa=True).refused}
    if _extension.cpu.loaded:
        assert "strict" in refused["cpu"]
