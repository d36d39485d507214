"""What fastdl.nn's recurrent modules take beside torch's common calls, and what they refuse, eager and compiled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastdl

KINDS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
T, B, I, H = 5, 2, 4, 6  # noqa: E741, torch's letters


def module_of(kind: str, **arguments: object) -> nn.Module:
    return getattr(fastdl.nn, kind)(I, H, **arguments)


def packed(sort: bool):
    return pack_padded_sequence(
        torch.randn(T, B, I), torch.tensor([5, 3] if sort else [3, 5]), enforce_sorted=sort
    )


def states(*shape: int):
    return torch.zeros(shape), torch.ones(shape)


CONSTRUCTORS = {
    "projection": ("LSTM", dict(proj_size=6), ValueError, "proj_size"),
    "dropout": ("LSTM", dict(dropout=1.5), ValueError, "dropout"),
    "layers": ("LSTM", dict(num_layers=0), ValueError, "num_layers"),
    "zoneout": ("LSTM", dict(zoneout=2.0), ValueError, "zoneout"),
    "bias": ("GRU", dict(bias=1), TypeError, "bias"),
    "projection of a GRU": ("GRU", dict(proj_size=2), ValueError, "proj_size"),
    "nonlinearity": ("RNN", dict(nonlinearity="gelu"), ValueError, "nonlinearity"),
    "directions": ("RNN", dict(bidirectional="no"), TypeError, "bidirectional must be a bool, got 'no'"),
    "two directions": ("LSTM", dict(bidirectional=2), TypeError, "bidirectional must be a bool, got 2"),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_refused_constructors(name):
    kind, arguments, error, message = CONSTRUCTORS[name]
    with pytest.raises(error, match=message):
        module_of(kind, **arguments)


def test_a_dropout_without_effect_is_warned_of():
    with pytest.warns(UserWarning, match="dropout"):
        module_of("LSTM", dropout=0.5)


@pytest.mark.parametrize("sizes", [(4, -1), (-1, 4), (4, 2.5), ("4", 4)], ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_refused_sizes_of_cells(kind, sizes):
    wrong = sizes[0] if sizes[0] != 4 else sizes[1]
    error, name = (TypeError, type(wrong).__name__) if wrong != -1 else (ValueError, "-1")
    with pytest.raises(error, match=f"_size must be .*got {name}"):
        getattr(fastdl.nn, kind)(*sizes)


@pytest.mark.parametrize("sizes", [(4, 0), (0, 4), (np.int64(4), np.int64(6))], ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_sizes_that_torchs_cells_take(kind, sizes):
    ours, theirs = (getattr(source, kind)(*sizes) for source in (fastdl.nn, nn))
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    assert getattr(fastdl.nn, kind)(4, 0, layer_norm=True).weight_norm_ih.numel() == 0


@pytest.mark.parametrize("value", [0, 1, np.False_, np.True_], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_equal_to_a_bool_says_the_directions(kind, value):
    module = module_of(kind, bidirectional=value)
    for given in (torch.randn(T, B, I), torch.randn(T, I), packed(False)):
        output = module(given)[0]
        output = output if isinstance(output, torch.Tensor) else output.data
        assert output.shape[-1] == (1 + bool(value)) * H


X, ROW = torch.randn(T, B, I), torch.randn(T, I)
NESTED = "input must be a dense Tensor.*got a nested tensor"
SEQUENCES = {
    "columns": ("LSTM", (torch.randn(T, B, 3),), ValueError, "input_size = 4, got 3"),
    "one dimension": ("LSTM", (torch.randn(I),), ValueError, "2 or 3 dimensions, got 1"),
    "kind": ("LSTM", (None,), TypeError, "input must be a Tensor or PackedSequence, got NoneType"),
    "states of a batch": ("LSTM", (ROW, states(1, 1, H)), ValueError, "h_0 must have 2 dimensions"),
    "states of another width": ("LSTM", (ROW, states(1, 5)), ValueError, r"= \[1, 1, 6\], got \[1, 1, 5\]"),
    "h_0 alone": ("LSTM", (ROW, (torch.zeros(1, H), None)), TypeError, "pair .*got .Tensor, NoneType"),
    "h_0 no pair": ("LSTM", (ROW, torch.zeros(2, H)), TypeError, "pair .*got Tensor"),
    "a pair for a GRU": ("GRU", (ROW, states(1, H)), TypeError, "hx must be a Tensor h_0 or None, got tuple"),
    "packed, h_0 alone": (
        "LSTM",
        (packed(False), (torch.zeros(1, B, H), None)),
        TypeError,
        "pair .*NoneType",
    ),
    "packed, more states": (
        "LSTM",
        (packed(False), states(1, 3, H)),
        ValueError,
        r"\[1, 2, 6\], got \[1, 3, 6\]",
    ),
    "packed, a state": (
        "GRU",
        (packed(False), torch.zeros(1, 1, H)),
        ValueError,
        r"\[1, 2, 6\], got \[1, 1, 6\]",
    ),
    "packed, no batch": ("RNN", (packed(False), torch.zeros(1, H)), ValueError, r"\[1, 2, 6\], got \[1, 6\]"),
    "in order, no layers": ("GRU", (packed(True), torch.zeros(H)), ValueError, r"\[1, 2, 6\], got \[6\]"),
}
CELL_CALLS = {
    "h alone": ("LSTMCell", (ROW[0], torch.zeros(H)), TypeError, "pair .*got Tensor"),
    "h without c": ("LSTMCell", (ROW[0], (torch.zeros(H), None)), TypeError, "pair .*got .Tensor, NoneType"),
    "a tensor of two": ("LSTMCell", (ROW[0], torch.zeros(2, H)), TypeError, "pair .*got Tensor"),
    "three": ("LSTMCell", (ROW[0], (torch.zeros(H),) * 3), TypeError, "pair .*got 3 of them"),
    "states of a batch": (
        "LSTMCell",
        (ROW[0], states(1, H)),
        ValueError,
        "h_0 must have 1 dimensions .*got 2",
    ),
    "a pair for a GRU": (
        "GRUCell",
        (ROW[0], states(H)),
        TypeError,
        "hx must be a Tensor h_0 or None, got tuple",
    ),
    "a batch for an RNN": ("RNNCell", (ROW[0], torch.zeros(1, H)), ValueError, "h_0 must have 1 dimensions"),
}
RESETS = {
    "a list": ([True] * T, TypeError, "reset must be a Tensor or None, got list"),
    "a bool": (True, TypeError, "reset must be a Tensor or None, got bool"),
    "a batch": (torch.ones(T, 1, dtype=torch.bool), ValueError, "reset must have . dimensions .*got 2"),
}


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("calls", [SEQUENCES, CELL_CALLS], ids=["sequences", "cells"])
def test_refused_inputs(calls, how, dynamo):
    for kind, given, error, message in calls.values():
        module = module_of(kind)
        module = torch.compile(module, backend="eager") if how == "compiled" else module
        with pytest.raises(error, match=message):
            module(*given)
        torch._dynamo.reset()


@pytest.mark.parametrize("name", RESETS)
@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_refused_resets(kind, name):
    reset, error, message = RESETS[name]
    with pytest.raises(error, match=message):
        module_of(kind)(ROW[0] if kind in CELLS else ROW, reset=reset)


def test_lengths_need_a_batch():
    with pytest.raises(ValueError, match="lengths"):
        module_of("LSTM")(ROW, lengths=torch.tensor([5]))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors(kind, layout):
    """torch's layers serve none either."""
    nested = torch.nested.nested_tensor([torch.randn(3, I), torch.randn(5, I)], layout=layout)
    with pytest.raises(TypeError, match=NESTED):
        module_of(kind)(nested)
    op = getattr(fastdl.ops, kind.lower().replace("cell", "_cell"))
    params = list(module_of(kind).parameters())
    with pytest.raises(TypeError, match="x must be a dense Tensor, got a nested one"):
        op(nested, None, *([params] if kind in KINDS else params))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_packed_batch_that_torch_compile_does_not_read(backend, dynamo):
    """More states than sequences in order are seen where the sizes are: while it runs."""
    module = torch.compile(module_of("LSTM"), fullgraph=True, backend=backend)
    module(packed(True), states(1, B, H))
    with pytest.raises(RuntimeError, match=r"hx must have B = batch_sizes\[0\]"):
        module(packed(True), states(1, 3, H))


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_that_torch_compile_does_not_read_end_at_T(kind, dynamo):
    module = module_of(kind)
    compiled = torch.compile(module, backend="eager")
    found, expected = (f(X, lengths=torch.tensor(n)) for f, n in ((compiled, [7, -3]), (module, [T, 0])))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_as_any_iterable(kind):
    module, op = module_of(kind), getattr(fastdl.ops, kind.lower())
    expected = op(X, None, list(module.parameters()))
    for given in (module.parameters(), tuple(module.parameters()), nn.ParameterList(module.parameters())):
        for a, b in zip(op(X, None, given), expected, strict=True):
            assert torch.equal(a, b)
    assert str(fastdl.explain(kind.lower(), X, None, module.parameters())).startswith(kind.lower())
    for wrong in (None, module.weight_ih_l0):
        with pytest.raises(TypeError, match=f"params must be a list of Tensors, got {type(wrong).__name__}"):
            op(X, None, wrong)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers_drops_what_torchs_layer_drops(kind, batch_first):
    made = []
    for source in (nn, fastdl.nn):
        torch.manual_seed(5)
        made.append(getattr(source, kind)(I, H, 3, dropout=0.5, batch_first=batch_first, bidirectional=True))
    x, results = torch.randn(9, 3, I), []
    for module, backend in ((made[0], None), (made[1], "reference"), (made[1], "cpu")):
        if backend == "cpu" and not fastdl._extension.cpu.loaded:
            continue
        torch.manual_seed(6)
        with fastdl.backend(backend) if backend else torch.enable_grad():
            results.append(module(x)[0])
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arguments", [{}, dict(batch_first=True, bidirectional=True, num_layers=2)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_methods_that_torchs_derived_classes_call(kind, arguments):
    ours, theirs = module_of(kind, **arguments), getattr(nn, kind)(I, H, **arguments)
    size = theirs.get_expected_hidden_size(X, None)
    assert ours.get_expected_hidden_size(X, None) == size
    assert ours.get_expected_hidden_size(packed(True).data, packed(True).batch_sizes)[1] == B
    hidden = tuple(torch.randn(size) for _ in range(2))
    if kind == "LSTM":
        assert ours.get_expected_cell_size(X, None) == theirs.get_expected_cell_size(X, None)
    else:
        hidden = hidden[0]
    order = torch.arange(size[1]).flip(0)
    torch.testing.assert_close(ours.permute_hidden(hidden, order), theirs.permute_hidden(hidden, order))
    ours.check_forward_args(X, hidden, None)
    ours.check_hidden_size(torch.zeros(size), size)
    for module in (ours, theirs):
        for call in (
            lambda module=module: module.check_input(X[..., 1:], None),
            lambda module=module: module.check_forward_args(X[:1, :1], hidden, None),
            lambda module=module: module.check_hidden_size(torch.zeros(1), size),
        ):
            with pytest.raises(RuntimeError, match=r"[Ee]xpected"):
                call()
