"""LSTM, GRU and RNN over sequences: torch.nn's signatures, parameters and state_dicts, and the variants.

They do not subclass torch's: Dynamo breaks the graph at every instance of those. The attributes have torch's names,
so that assigning the class turns one into the other.
"""

from __future__ import annotations

import math
import weakref

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..ops import gru, lstm, rnn
from ..ops.rnn.checks import check_states, split_states
from ..ops.rnn.options import Options
from .leaf import Leaf
from .rnn_arguments import batch_of_one, check_arguments, check_input, states_of_one

States = Tensor | tuple[Tensor, Tensor] | None


class _Recurrent(Leaf, nn.Module):
    # What an instance of torch's class does not have.
    layer_norm = False
    zoneout: float | tuple[float, float] = 0.0
    recurrent_dropout = 0.0
    peephole = False
    checkpoint = False
    proj_size = 0

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        peephole: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size)
        self.mode = mode
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size = bidirectional, proj_size
        self.layer_norm, self.zoneout, self.recurrent_dropout = layer_norm, zoneout, recurrent_dropout
        self.peephole, self.checkpoint = peephole, checkpoint
        options = self._options(False).checked()
        structure = options.structure(proj_size > 0)
        state_size = proj_size or hidden_size
        self._flat_weights_names: list[str] = []
        self._all_weights: list[list[str]] = []
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else state_size * options.directions
            for direction in range(options.directions):
                suffix = f"_l{layer}" + ("_reverse" if direction else "")
                shapes = structure.shapes(inputs, hidden_size, state_size)
                for name, shape in shapes.items():
                    setattr(self, name + suffix, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
                names = [name + suffix for name in shapes]
                self._flat_weights_names += names
                self._all_weights.append(names)
        self._init_flat_weights()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +- 1 / sqrt(hidden_size), in torch's order; layer norms start as the identity."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        norms = ("weight_norm", "bias_norm")
        for name, weight in self.named_parameters():
            if not name.startswith(norms):
                nn.init.uniform_(weight, -bound, bound)
        for name, weight in self.named_parameters():
            if name.startswith(norms):
                nn.init.constant_(weight, 1.0 if name.startswith("weight") else 0.0)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: States = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor | tuple[Tensor, Tensor]]:
        if not isinstance(input, Tensor):
            if isinstance(input, PackedSequence):
                return self._forward_packed(input, hx, lengths, reset)
            node = self._node(input, hx, lengths=lengths, reset=reset)
            if node is not None:
                return node
        check_input(input, (2, 3), self.input_size, "Tensor or PackedSequence")
        if input.dim() == 3:
            return self._run(input, hx, None, lengths, reset)
        if lengths is not None:
            raise ValueError("lengths need a batched input of 3 dimensions, got 2")
        time_major = (0, 1)[self.batch_first]
        batch = 1 - time_major
        hx, reset = states_of_one(hx, self.mode.lower(), 1, 2), batch_of_one("reset", reset, batch, 1)
        output, ends = self._run(input.unsqueeze(batch), hx, None, None, reset)
        return output.squeeze(batch), _each(ends, lambda t: t.squeeze(1))

    def _forward_packed(
        self, packed: PackedSequence, hx: States, lengths: Tensor | None, reset: Tensor | None
    ) -> tuple[PackedSequence, Tensor | tuple[Tensor, Tensor]]:
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        check_input(data, (2,), self.input_size, "Tensor")
        if sorted_indices is not None:
            h_0, c_0 = split_states(hx, self.mode.lower())
            rows, B = self.num_layers * (2 if self.bidirectional else 1), sorted_indices.shape[0]
            check_states(h_0, c_0, rows, B, self.hidden_size, self.proj_size or self.hidden_size)
            hx = _each(hx, lambda t: t.index_select(1, sorted_indices))
        output, ends = self._run(data, hx, batch_sizes, lengths, reset)
        if unsorted_indices is not None:
            ends = _each(ends, lambda t: t.index_select(1, unsorted_indices))
        return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), ends

    def _run(
        self, x: Tensor, hx: States, batch_sizes: Tensor | None, lengths: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """(output, h_n or (h_n, c_n))"""
        raise NotImplementedError

    def _arguments(self, batch_sizes: Tensor | None) -> dict[str, object]:
        """The keyword arguments all three ops share."""
        return dict(
            has_biases=self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            train=self.training,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first and batch_sizes is None,
            batch_sizes=batch_sizes,
            layer_norm=self.layer_norm,
            zoneout=self.zoneout,
            recurrent_dropout=self.recurrent_dropout,
            checkpoint=self.checkpoint,
        )

    def _options(self, train: bool) -> Options:
        return Options(
            self.mode.lower(), self.bias, self.num_layers, self.dropout, train, self.bidirectional,
            self.batch_first, self.layer_norm, self.zoneout, self.recurrent_dropout, self.peephole, self.checkpoint,
        )  # fmt: skip

    def _parameter_list(self) -> list[Tensor]:
        # Not `_flat_weights`: torch.func.functional_call and parametrizations swap what the names mean.
        own = self._parameters
        found = []
        for name in self._flat_weights_names:
            parameter = own.get(name)
            found.append(getattr(self, name) if parameter is None else parameter)
        return found

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction, as torch.nn.LSTM.all_weights."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def flatten_parameters(self) -> None:
        """Nothing: the kernels take the parameters as they lie."""

    def extra_repr(self) -> str:
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = dict(
            proj_size=0, num_layers=1, bias=True, batch_first=False, dropout=0, bidirectional=False,
            layer_norm=False, zoneout=0.0, recurrent_dropout=0.0, peephole=False, checkpoint=False,
        )  # fmt: skip
        shown += [f"{name}={getattr(self, name)}" for name, d in defaults.items() if getattr(self, name) != d]
        return ", ".join(shown)

    # What classes derived from torch's call in a forward of their own.
    check_input = nn.RNNBase.check_input
    check_hidden_size = nn.RNNBase.check_hidden_size
    check_forward_args = nn.RNNBase.check_forward_args
    get_expected_hidden_size = nn.RNNBase.get_expected_hidden_size
    permute_hidden = nn.RNNBase.permute_hidden

    # What torch's classes keep beside the parameters, so that the class can be assigned back.

    def _init_flat_weights(self) -> None:
        self._flat_weights = [getattr(self, name, None) for name in self._flat_weights_names]
        self._flat_weight_refs = [None if w is None else weakref.ref(w) for w in self._flat_weights]

    def __setattr__(self, name: str, value: object) -> None:
        names = self.__dict__.get("_flat_weights_names", ())
        if name in names and len(self.__dict__.get("_flat_weights", ())) == len(names):
            self._flat_weights[names.index(name)] = value
        super().__setattr__(name, value)

    def _apply(self, fn: object, recurse: bool = True) -> nn.Module:
        self._flat_weight_refs = []
        result = super()._apply(fn, recurse)
        self._init_flat_weights()
        return result

    def __getstate__(self) -> dict[str, object]:
        self._init_flat_weights()
        return {name: value for name, value in self.__dict__.items() if name != "_flat_weight_refs"}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._init_flat_weights()

    def _replicate_for_data_parallel(self) -> nn.Module:
        replica = super()._replicate_for_data_parallel()
        replica._flat_weights = replica._flat_weights[:]
        replica._flat_weights_names = replica._flat_weights_names[:]
        return replica


class LSTM(_Recurrent):
    """torch.nn.LSTM: its arguments, parameters, initialisation and results, and variants of the cell.

    Args:
        layer_norm: both products of a step are normalised over the gates, c before its last tanh (Ba et al. 2016).
        zoneout: a probability, or a pair (of h, of c), of keeping the old value (Krueger et al. 2017).
        recurrent_dropout: probability of dropping a column of h in the recurrent product, one mask for all steps
            (Gal and Ghahramani 2016).
        peephole: c enters the gates through three vectors (Gers and Schmidhuber 2000).
        checkpoint: keep only inputs for backward, which computes the layer again.

    `forward(input, hx=None, *, lengths=None, reset=None)` takes [T, B, I], with `batch_first` [B, T, I], [T, I] or a
    PackedSequence, and returns (output, (h_n, c_n)). `lengths` [B] needs no sorting and no copy to the host (one
    beyond T counts as T where its value is not looked at: on another device, under torch.compile); `reset` [T, B] (as
    `input`) zeroes the state before a step. The variants add parameters weight_peephole, weight_norm_ih,
    weight_norm_hh, weight_norm_c, bias_norm_c; without them a state_dict is torch's. Under
    autocast results have its dtype, c_n float32, on every device. Errors: as `fastdl.ops.lstm`.

    Source: torch.nn.LSTM.

    >>> import fastdl, torch
    >>> output, (h_n, c_n) = fastdl.nn.LSTM(3, 4, num_layers=2, zoneout=0.1)(torch.ones(5, 2, 3))
    >>> output.shape, c_n.shape
    (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__("LSTM", *args, **kwargs)

    check_forward_args = nn.LSTM.check_forward_args
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden

    def _run(
        self, x: Tensor, hx: States, batch_sizes: Tensor | None, lengths: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        options = self._arguments(batch_sizes)
        output, h_n, c_n = lstm(
            x, hx, self._parameter_list(), **options, peephole=self.peephole, lengths=lengths, reset=reset
        )
        return output, (h_n, c_n)


class GRU(_Recurrent):
    """torch.nn.GRU: its arguments, parameters, initialisation and results, and variants of the cell.

    The variants and `forward` are those of `fastdl.nn.LSTM`, without a projection and a peephole; `hx` and the second
    result are h alone. Errors: as `fastdl.ops.gru`. Source: torch.nn.GRU.

    >>> import fastdl, torch
    >>> output, h_n = fastdl.nn.GRU(3, 4, batch_first=True)(torch.ones(2, 5, 3), lengths=torch.tensor([5, 2]))
    >>> output.shape, h_n.shape
    (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)

    def _run(
        self, x: Tensor, hx: States, batch_sizes: Tensor | None, lengths: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return gru(
            x, hx, self._parameter_list(), **self._arguments(batch_sizes), lengths=lengths, reset=reset
        )


class RNN(_Recurrent):
    """torch.nn.RNN: its arguments, parameters, initialisation and results, and variants of the cell.

    The variants and `forward` are those of `fastdl.nn.GRU`; `nonlinearity` is "tanh" or "relu", by keyword or the
    fourth argument as in torch. Errors: as `fastdl.ops.rnn`. Source: torch.nn.RNN.

    >>> import fastdl, torch
    >>> output, h_n = fastdl.nn.RNN(3, 4, nonlinearity="relu")(torch.ones(5, 2, 3))
    >>> output.shape, h_n.shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """

    nonlinearity: str

    def __init__(self, *args: object, **kwargs: object) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, **kwargs)
        self.nonlinearity = nonlinearity

    def _run(
        self, x: Tensor, hx: States, batch_sizes: Tensor | None, lengths: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        options = self._arguments(batch_sizes)
        nonlinearity = "relu" if self.mode == "RNN_RELU" else "tanh"
        return rnn(
            x, hx, self._parameter_list(), nonlinearity=nonlinearity, **options, lengths=lengths, reset=reset
        )


def _each(states: States, change: object) -> States:
    """`change` of each state there is."""
    if isinstance(states, (tuple, list)):
        return tuple([change(t) for t in states])
    return None if states is None else change(states)
