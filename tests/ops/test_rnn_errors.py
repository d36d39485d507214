"""Bad input: the kind of error, and a message that says what was expected and what came."""

from __future__ import annotations

import pytest
import torch
from rnn_plans import arguments

import fastdl

T, B, I, H = 5, 3, 4, 6  # noqa: E741


def call(kind: str = "lstm", **changes):
    """An op's call with some arguments changed; `x`, `hx`, `params` may be functions of the usual value."""
    x, hx, params = (t for t in arguments(kind, torch.float32, T, B, I, H, **changes.pop("layer", {})))
    values = {"x": x, "hx": hx, "params": params}
    for name in values:
        change = changes.pop(name, None)
        values[name] = change(values[name]) if callable(change) else values[name]
    return getattr(fastdl.ops, kind)(values["x"], values["hx"], values["params"], **changes)


def replaced(i: int, make):
    return lambda params: [make(p) if k == i else p for k, p in enumerate(params)]


VALUE_ERRORS = {
    "feature size": (
        dict(x=lambda x: x[..., :3]),
        r"weight_ih of layer 0 must have shape \[24, 3\], got \[24, 4\]",
    ),
    "dimensions": (dict(x=lambda x: x[0]), r"x must have shape \[T, B, I\], got \[3, 4\]"),
    "batch of h": (
        dict(hx=lambda h: (h[0][:, :2], h[1])),
        r"h_0 must have shape .* = \[1, 3, 6\], got \[1, 2, 6\]",
    ),
    "width of c": (
        dict(hx=lambda h: (h[0], h[1][..., :5])),
        r"c_0 must have shape .* = \[1, 3, 6\], got \[1, 3, 5\]",
    ),
    "layers of h": (
        dict(num_layers=2, layer=dict(num_layers=2), hx=lambda h: (h[0][:1], h[1])),
        r"\[2, 3, 6\]",
    ),
    "count of params": (dict(params=lambda p: p[:3]), "params must hold 4 or 5 tensors .* got 3"),
    "shape of a bias": (
        dict(params=replaced(3, lambda p: p[:5])),
        r"bias_hh of layer 0 must have shape \[24\]",
    ),
    "projection": (
        dict(params=lambda p: [p[0], torch.zeros(24, 7), *p[2:], torch.zeros(7, 6)], hx=lambda h: None),
        "projection of h must be smaller than H = 6, got 7",
    ),
    "length over T": (dict(lengths=torch.tensor([5, 6, 1])), "lengths must be from 0 to T = 5, got 6"),
    "negative length": (dict(lengths=torch.tensor([5, -1, 1])), "lengths must be from 0 to T = 5, got -1"),
    "count of lengths": (
        dict(lengths=torch.tensor([5, 1])),
        r"lengths must have shape \[B\] = \[3\], got \[2\]",
    ),
    "rows of reset": (
        dict(reset=torch.zeros(3, 5, dtype=torch.bool)),
        r"reset must have the rows of x, \[5, 3\]",
    ),
    "zoneout": (dict(zoneout=(0.1, 1.5)), "zoneout must be a number from 0 to 1, got 1.5"),
    "dropout": (dict(dropout=-0.1), "dropout must be a number from 0 to 1, got -0.1"),
    "layers": (dict(num_layers=0), "num_layers must be at least 1, got 0"),
    "zoneout of c": (dict(kind="gru", zoneout=(0.0, 0.1)), "zoneout of c is for lstm"),
    "nonlinearity": (
        dict(kind="rnn", nonlinearity="gelu"),
        "nonlinearity must be 'tanh' or 'relu', got 'gelu'",
    ),
}
TYPE_ERRORS = {
    "h_0 without c_0": (dict(hx=lambda h: h[0]), r"hx must be a pair \(h_0, c_0\) or None, got Tensor"),
    "c_0 is None": (dict(hx=lambda h: (h[0], None)), r"hx must be a pair \(h_0, c_0\) of Tensors"),
    "a pair for gru": (dict(kind="gru", hx=lambda h: (h, h)), "hx must be a Tensor h_0 or None, got tuple"),
    "integers": (dict(x=lambda x: x.detach().long()), "x must be floating point, got torch.int64"),
    "dtype of x": (
        dict(x=lambda x: x.double()),
        "must have the dtype of x, torch.float64, got torch.float32",
    ),
    "dtype of a weight": (
        dict(params=replaced(1, lambda p: p.half())),
        r"params\[1\] must have the dtype of x",
    ),
    "device of a weight": (
        dict(params=replaced(0, lambda p: p.to("meta"))),
        r"params\[0\] must be on the device of x",
    ),
    "kind of x": (dict(x=lambda x: None), "x must be a Tensor, got NoneType"),
    "kind of a param": (dict(params=replaced(2, lambda p: None)), r"params\[2\] must be a Tensor"),
    "dtype of lengths": (dict(lengths=torch.ones(3)), "lengths must be int64 or int32, got torch.float32"),
    "dtype of reset": (dict(reset=torch.zeros(5, 3)), "reset must be bool, got torch.float32"),
}


@pytest.mark.parametrize("name", VALUE_ERRORS)
def test_value_errors(name):
    changes, message = VALUE_ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call(**dict(changes))


@pytest.mark.parametrize("name", TYPE_ERRORS)
def test_type_errors(name):
    changes, message = TYPE_ERRORS[name]
    with pytest.raises(TypeError, match=message):
        call(**dict(changes))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([2, 3], "positive and not increase"),
        ([3, 1], r"sum\(batch_sizes\) = 4 rows, got 5"),
        ([3, 0, 2], "positive and not increase"),
        ([4, 1], r"B = batch_sizes\[0\] = 4, got 3"),
    ],
)
def test_packed_rows(sizes, message):
    _, hx, params = arguments("lstm", torch.float32, T, B, I, H)
    with pytest.raises(ValueError, match=message):
        fastdl.ops.lstm(torch.randn(5, I), hx, params, batch_sizes=torch.tensor(sizes))


CELL_ERRORS = {
    "feature size": (lambda x, h, p: (x[:, :3], h, *p), r"weight_ih of layer 0 must have shape"),
    "batch of h": (
        lambda x, h, p: (x, (h[0][:2], h[1]), *p),
        r"h must have shape \[B, H\] = \[3, 6\], got \[2, 6\]",
    ),
    "one bias": (lambda x, h, p: (x, h, *p[:3]), "bias_ih, bias_hh go together: bias_hh missing"),
    "dimensions": (lambda x, h, p: (x[0], h, *p), r"x must have shape \[B, I\], got \[4\]"),
}


@pytest.mark.parametrize("name", CELL_ERRORS)
def test_cell_errors(name):
    change, message = CELL_ERRORS[name]
    x, (h, c), params = arguments("lstm", torch.float32, T, B, I, H)
    with pytest.raises(ValueError, match=message):
        fastdl.ops.lstm_cell(*change(x[0], (h[0], c[0]), params))


QUICK_ERRORS = {
    "a bias of one": (lambda x, h, c, p: (x, (h, c), *p[:2], p[2][:1], p[3]), "bias_ih .*must have shape"),
    "a bias of two dimensions": (
        lambda x, h, c, p: (x, (h, c), *p[:3], p[3][None]),
        "bias_hh .*must have shape",
    ),
    "a bias of each sequence": (
        lambda x, h, c, p: (x, (h, c), *p[:2], p[2].expand(3, -1), p[3].expand(3, -1)),
        "bias_ih .*must have shape",
    ),
    "one row of weight_ih": (lambda x, h, c, p: (x, (h, c), p[0][:1], *p[1:]), "weight_ih .*must have shape"),
    "four rows of weight_hh": (
        lambda x, h, c, p: (x, (h, c), p[0][:4], p[1][:4]),
        "weight_hh must have shape",
    ),
    "dimensions of c": (lambda x, h, c, p: (x[:1], (h[:1], c[:1, :, None]), *p), "c must have shape"),
    "dtype of c": (lambda x, h, c, p: (x, (h, c.double()), *p), "must have the dtype of x"),
}


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("name", QUICK_ERRORS)
def test_what_torchs_cell_would_broadcast(name, gradient):
    """Small cells are torch's own, whose operator takes most of these."""
    change, message = QUICK_ERRORS[name]
    x, (h, c), params = arguments("lstm", torch.float32, T, B, I, H)
    given = change(x[0], h[0], c[0], params)
    with torch.set_grad_enabled(gradient), pytest.raises((TypeError, ValueError), match=message):
        fastdl.ops.lstm_cell(*given)


@pytest.mark.parametrize("kind", ["gru", "rnn"])
def test_a_bias_of_one_in_cells_of_one_state(kind):
    x, h, (weight_ih, weight_hh, bias, _) = arguments(kind, torch.float32, T, B, I, H)
    with pytest.raises(ValueError, match="must have shape"):
        getattr(fastdl.ops, f"{kind}_cell")(x[0], h[0], weight_ih, weight_hh, bias[:1], bias[:1])


@pytest.mark.parametrize(
    ("variants", "error", "message"),
    [
        (dict(reset=torch.zeros(2, dtype=torch.bool)), ValueError, r"reset must have the rows of x, \[3\]"),
        (dict(reset=torch.zeros(3)), TypeError, "reset must be bool, got torch.float32"),
        (dict(reset=True), TypeError, "reset must be a Tensor or None, got bool"),
        (dict(recurrent_dropout=1.5), ValueError, "recurrent_dropout must be a number from 0 to 1, got 1.5"),
    ],
)
def test_variants_of_cells(variants, error, message):
    x, h, params = arguments("gru", torch.float32, T, B, I, H)
    with pytest.raises(error, match=message):
        fastdl.ops.gru_cell(x[0], h[0], *params, **variants)


def test_forcing_what_cannot_serve_lists_the_reasons():
    x, hx, params = arguments("lstm", torch.float32)
    with fastdl.backend("triton"), pytest.raises(fastdl.UnsupportedError, match="triton"):
        fastdl.ops.lstm(x.to("meta"), None, [p.to("meta") for p in params])


@pytest.mark.parametrize("T", [1, 2, 3])
def test_states_of_other_sizes_are_errors_in_short_sequences_too(T):
    """Few steps are torch's own layer's, whose operator checks nothing."""
    layer, x = fastdl.nn.LSTM(8, 16), torch.randn(T, 3, 8)
    for h, c in ((2, 2), (1, 1), (3, 1)):
        with pytest.raises(ValueError, match="must have shape"):
            layer(x, (torch.zeros(1, h, 16), torch.zeros(1, c, 16)))
