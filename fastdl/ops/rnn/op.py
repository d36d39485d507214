"""The public ops over whole sequences: lstm, gru, rnn."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ... import dispatch
from .options import Options
from .refusals import CANDIDATES
from .stack import describe, run_stack, sequence_inputs


def lstm(
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    params: Iterable[Tensor],
    *,
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    layer_norm: bool = False,
    zoneout: float | tuple[float, float] = (0.0, 0.0),
    recurrent_dropout: float = 0.0,
    peephole: bool = False,
    checkpoint: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory over sequences; differentiable.

    Per step i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of W_ih x + b_ih + W_hh h + b_hh; c' = f c + i g;
    h' = o tanh(c'), with a projection W_hr h'. The input product of all steps is one product; the recurrence one
    kernel. Rows past a length give output 0 and keep the state; what they hold does not matter.

    Args:
        x: [T, B, I], with `batch_first` [B, T, I], with `batch_sizes` [total, I]; float64, float32, bfloat16, float16.
        hx: (h_0 [num_layers * D, B, R], c_0 [num_layers * D, B, H]) or None: zero. D is 2 if bidirectional, else 1.
        params: in any iterable, of each layer, then direction: weight_ih [4H, I], weight_hh [4H, R], bias_ih [4H],
            bias_hh [4H], weight_hr [R, H] (a projection, R < H), weight_peephole [3H], weight_norm_ih [4H],
            weight_norm_hh [4H], weight_norm_c [H], bias_norm_c [H]; those that the options ask for. R is H without a
            projection.
        has_biases, num_layers, dropout, train, bidirectional, batch_first: as torch.lstm.
        batch_sizes: [T] int64 on the CPU: x is packed, as in PackedSequence.
        lengths: [B] int64 or int32, steps of each sequence, from 0 to T; sequences need no order. On another device
            than the CPU, and under torch.compile, nothing looks at the values: less counts as 0, more as T.
        reset: the rows of x, bool: the state is zeroed before the step.
        layer_norm: normalises both products over the gates, and c' before the last tanh.
        zoneout: probabilities (h, c) of keeping the old value; their expectation unless `train`.
        recurrent_dropout: probability of dropping a column of h in W_hh h, the same in every step.
        peephole: adds p_i c and p_f c to i and f, p_o c' to o.
        checkpoint: saves only inputs for backward, which computes the layer again.

    Returns:
        output [*rows, D * R], h_n like h_0, c_n like c_0; in the dtype of x, under autocast in its dtype and c_n
        float32.

    Raises:
        TypeError: kinds, dtypes or devices do not fit.
        ValueError: a shape or a value does not fit; the message says expected and got.
        UnsupportedError: `fastdl.strict()` or `fastdl.backend()` leaves nothing that can serve the call.

    Source: torch.nn.LSTM; Hochreiter and Schmidhuber 1997. Variants: see fastdl.nn.LSTM.

    >>> import fastdl, torch
    >>> params = list(torch.nn.LSTM(3, 4).parameters())
    >>> output, h_n, c_n = fastdl.ops.lstm(torch.ones(5, 2, 3), None, params)
    >>> output.shape, c_n.shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """
    options = Options(
        "lstm", has_biases, num_layers, dropout, train, bidirectional, batch_first, layer_norm, zoneout,
        recurrent_dropout, peephole, checkpoint,
    )  # fmt: skip
    return run_stack("lstm", x, hx, params, options, batch_sizes, lengths, reset)


def gru(
    x: Tensor,
    hx: Tensor | None,
    params: Iterable[Tensor],
    *,
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    layer_norm: bool = False,
    zoneout: float | tuple[float, float] = 0.0,
    recurrent_dropout: float = 0.0,
    checkpoint: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent unit over sequences; differentiable.

    Per step, with u = W_hh h + b_hh: r, z = sigmoid of W_ih x + b_ih + u; n = tanh(W_ih x + b_ih + r u);
    h' = (1 - z) n + z h. Arguments, results and errors as `fastdl.ops.lstm`, with hx = h_0 [num_layers * D, B, H],
    3H rows in the weights, no projection, no c; `params`: weight_ih, weight_hh, bias_ih, bias_hh, weight_norm_ih,
    weight_norm_hh.

    Returns:
        output [*rows, D * H], h_n like h_0.

    Source: torch.nn.GRU; Cho et al. 2014.

    >>> import fastdl, torch
    >>> params = list(torch.nn.GRU(3, 4).parameters())
    >>> output, h_n = fastdl.ops.gru(torch.ones(5, 2, 3), None, params)
    >>> output.shape, h_n.shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """
    options = Options(
        "gru", has_biases, num_layers, dropout, train, bidirectional, batch_first, layer_norm, zoneout,
        recurrent_dropout, False, checkpoint,
    )  # fmt: skip
    return run_stack("gru", x, hx, params, options, batch_sizes, lengths, reset)[:2]


def rnn(
    x: Tensor,
    hx: Tensor | None,
    params: Iterable[Tensor],
    *,
    nonlinearity: str = "tanh",
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    layer_norm: bool = False,
    zoneout: float | tuple[float, float] = 0.0,
    recurrent_dropout: float = 0.0,
    checkpoint: bool = False,
) -> tuple[Tensor, Tensor]:
    """Elman network over sequences, h' = tanh (or relu) of W_ih x + b_ih + W_hh h + b_hh; differentiable.

    `nonlinearity` is "tanh" or "relu". Everything else as `fastdl.ops.gru`, with H rows in the weights.

    Returns:
        output [*rows, D * H], h_n like h_0.

    Source: torch.nn.RNN; Elman 1990.

    >>> import fastdl, torch
    >>> params = list(torch.nn.RNN(3, 4).parameters())
    >>> output, h_n = fastdl.ops.rnn(torch.ones(5, 2, 3), None, params)
    >>> output.shape, h_n.shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """
    options = Options(
        rnn_cell_name(nonlinearity), has_biases, num_layers, dropout, train, bidirectional, batch_first, layer_norm,
        zoneout, recurrent_dropout, False, checkpoint,
    )  # fmt: skip
    return run_stack("rnn", x, hx, params, options, batch_sizes, lengths, reset)[:2]


def rnn_cell_name(nonlinearity: str) -> str:
    """The cell of a plain recurrent network."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    return f"rnn_{nonlinearity}"


def _dispatch_arguments(cell: str) -> object:
    """What the refusals see of a call."""

    def arguments(
        x, hx, params, batch_sizes, lengths, reset, nonlinearity="tanh", **options: object
    ) -> tuple:
        chosen = Options(rnn_cell_name(nonlinearity) if cell == "rnn" else cell, **options)
        inputs = sequence_inputs(x, hx, params, chosen, batch_sizes, lengths, reset)
        return describe(inputs, chosen)[0], *inputs.floating

    return arguments


for _function in (lstm, gru, rnn):
    _name = _function.__name__
    dispatch.register(_name, CANDIDATES, _function, _dispatch_arguments(_name))
