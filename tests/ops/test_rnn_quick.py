"""The short ways of inference: a step's own operator, and decisions remembered by metadata alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from rnn_calls import Call, draw
from torch import Tensor, nn

import fastdl
from fastdl import _extension
from fastdl.ops.rnn import plans, stack
from fastdl.ops.rnn.structure import CELLS, Structure
from fastdl.testing.error_rule import SEEDS, judge

pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif(not _extension.cpu.loaded, reason="the CPU kernels are not built"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYERS = [
    (nn.LSTM, {}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    (nn.LSTM, {"num_layers": 2, "proj_size": 5, "batch_first": True}),
    (nn.GRU, {"num_layers": 3, "bias": False}),
    (nn.GRU, {"bidirectional": True, "batch_first": True}),
    (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
]
CELL_CLASSES = {"lstm": "LSTMCell", "gru": "GRUCell", "rnn_tanh": "RNNCell", "rnn_relu": "RNNCell"}


def draw_step(cell: str, dtype: torch.dtype, B: int, states: bool, bias: bool, seed: int) -> Call:
    s = Structure(cell, has_bias=bias, projected=False)
    call = draw(s, "plain", dtype, T=1, B=B, H=13, seed=seed)
    return call if states else replace(call, h_0=None, c_0=None)


def arguments_of(call: Call) -> tuple:
    h, c = (None if t is None else t[0] for t in (call.h_0, call.c_0))
    return call.x[0], h, c, call.weights, CELLS.index(call.s.cell)


def ends_of(call: Call) -> tuple[Tensor, ...]:
    found = call.reference()
    return (found.output[0], found.c_n[0]) if call.s.cell == "lstm" else (found.output[0],)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_a_step_obeys_the_error_rule(cell, dtype):
    for B, states, bias in itertools.product((1, 5, 40), (True, False), (True, False)):
        runs = []
        for seed in SEEDS:
            call = draw_step(cell, dtype, B, states, bias, seed)
            found = torch.ops.fastdl.rnn_step(*arguments_of(call))
            runs.append((found, ends_of(call), ends_of(call.to(torch.float64))))
        for i, name in enumerate(("h", "c")[: len(runs[0][1])]):
            assert runs[0][0][i].dtype == runs[0][1][i].dtype
            report = judge([(a[i], truth[i], b[i], truth[i]) for a, b, truth in runs], dtype)
            assert report.within_rule, f"B {B}, states {states}, bias {bias}: {name}: {report}"


@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_of_a_step(cell):
    for states in (True, False):
        torch.library.opcheck(
            torch.ops.fastdl.rnn_step.default,
            arguments_of(draw_step(cell, torch.float32, 3, states, states, 0)),
        )


def test_a_step_refuses_what_does_not_fit():
    x, h, c, weights, cell = arguments_of(draw_step("lstm", torch.float32, 3, True, True, 0))
    step = torch.ops.fastdl.rnn_step
    for wrong, message in (
        ((x[0], h, c, weights, cell), "2 dimensions"),
        ((x, h[:2], c, weights, cell), "h must have shape"),
        ((x, h, c.double(), weights, cell), "c has a dtype"),
        ((x, h, c, weights[:3], cell), "expected 4 weights"),
        ((x[:, :-1], h, c, weights, cell), "weight_ih must have shape"),
        ((x, h, c, weights, 7), "no cell has the code"),
        ((x, h, c, [weights[0], weights[1][:-1], *weights[2:]], cell), "weight_hh must have shape"),
    ):
        with pytest.raises(RuntimeError, match=message):
            step(*wrong)


def test_flops_of_a_step_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    import fastdl.ops.flops  # noqa: F401

    x, *rest = arguments_of(draw_step("gru", torch.float32, 3, True, True, 0))
    with FlopCounterMode(display=False) as counter:
        torch.ops.fastdl.rnn_step(x, *rest)
    assert counter.get_total_flops() == 2 * 3 * 3 * 13 * (x.shape[1] + 13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_cell_takes_the_step_and_gives_the_same_as_the_long_way(cell, dtype):
    options = {"nonlinearity": cell.removeprefix("rnn_")} if cell.startswith("rnn") else {}
    layer = getattr(fastdl.nn, CELL_CLASSES[cell])(150, 180, dtype=dtype, **options)
    x, h = torch.randn(20, 150, dtype=dtype), torch.randn(20, 180, dtype=dtype)
    for hx in (None, (h, h.flip(0)) if cell == "lstm" else h):
        with torch.profiler.profile() as profile:
            found = layer(x, hx)
        assert "fastdl::rnn_step" in {event.key for event in profile.key_averages()}
        with fastdl.backend("cpu"):
            expected = layer(x, hx)
        for ours, theirs in zip(
            *((r if isinstance(r, tuple) else (r,)) for r in (found, expected)), strict=True
        ):
            assert ours.dtype == theirs.dtype == dtype
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("base", "options"), LAYERS, ids=str)
@torch.no_grad()
def test_a_stack_gives_the_same_as_the_long_way(base, options, dtype, monkeypatch):
    layer = getattr(fastdl.nn, base.__name__)(7, 12, dtype=dtype, **options)
    x = torch.randn(4, 3, 7, dtype=dtype)
    plans._decided.clear()
    output, ends = layer(x)
    again = layer(x, torch.utils._pytree.tree_map(torch.zeros_like, ends))[0]
    assert torch.equal(output, again)
    monkeypatch.setattr(stack, "quickly_remembered", lambda *_: None)
    expected, expected_ends = layer(x)
    assert torch.equal(output, expected)
    for ours, theirs in zip(
        *(r if isinstance(r, tuple) else (r,) for r in (ends, expected_ends)), strict=True
    ):
        assert ours.dtype == theirs.dtype == dtype
        assert torch.equal(ours, theirs)


def test_what_is_decided_is_what_is_explained():
    chosen = set()
    for name, B, H, gradient in itertools.product(("LSTM", "GRU", "RNN"), (1, 40), (4, 96), (False, True)):
        cell = getattr(fastdl.nn, f"{name}Cell")(H, H)
        x, params = torch.randn(B, H), tuple(cell.parameters())
        op = f"{name.lower()}_cell"
        with torch.set_grad_enabled(gradient):
            explained = fastdl.explain(op, x, None, *params)
            plans._decided.clear()
            getattr(fastdl.ops, op)(x, None, *params)
        (decided,) = plans._decided.values()
        assert tuple(decided.plan[:2]) == (explained.backend, explained.algorithm)
        chosen.add(decided.plan.algorithm)
    assert chosen == {"fused", "aten"}


def test_more_is_asked_where_more_than_metadata_decides():
    cell = fastdl.nn.LSTMCell(4, 4)
    x, params = torch.randn(2, 4), tuple(cell.parameters())

    def quick(*tensors) -> bool:
        return plans.quickly_remembered(("a test",), tensors, (None,), lambda _: True) is not None

    assert quick(x, *params)
    for setting in (fastdl.backend("cpu"), fastdl.strict(), fastdl.precision("strict")):
        with setting:
            assert not quick(x, *params)
    with torch.autocast("cpu", torch.bfloat16):
        assert not quick(x, *params)
    with torch.autograd.forward_ad.dual_level():
        assert not quick(x, *params)
    torch.func.vmap(lambda t: (quick(t) and pytest.fail("under vmap"), t)[1])(x)
    assert not quick(x.to("meta"))
    assert not quick(x, [x])
    assert not quick(x, None)
