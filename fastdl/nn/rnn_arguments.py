"""What torch.nn's recurrent modules refuse, with torch's kinds of errors."""

from __future__ import annotations

import operator
import warnings

from torch import Tensor

from ..ops.rnn.checks import HX, split_states
from ..ops.rnn.options import probability


def check_arguments(
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bias: bool,
    batch_first: bool,
    dropout: float,
    proj_size: int,
) -> None:
    """Raise TypeError or ValueError where a value does not fit; warn of a dropout without effect."""
    for name, value in (("bias", bias), ("batch_first", batch_first)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= proj_size < hidden_size:
        raise ValueError(f"proj_size must be from 0 to hidden_size - 1 = {hidden_size - 1}, got {proj_size}")
    probability("dropout", dropout)
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"dropout is applied after every layer but the last: with num_layers=1, dropout={dropout} does nothing",
            stacklevel=5,
        )


def check_cell_sizes(input_size: int, hidden_size: int) -> None:
    """TypeError or ValueError unless both are integers from 0, of any integer type, as torch's cells take them."""
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")


def check_input(input: Tensor, dims: tuple[int, int] | tuple[int], input_size: int, kinds: str) -> None:
    """TypeError or ValueError unless `input` is a dense Tensor of one of the numbers of dimensions."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a {kinds}, got {type(input).__name__}")
    if input.is_nested:
        raise TypeError(f"input must be a dense {kinds}, got a nested tensor")
    if input.dim() not in dims:
        raise ValueError(f"input must have {' or '.join(map(str, dims))} dimensions, got {input.dim()}")
    if input.shape[-1] != input_size:
        raise ValueError(f"input.size(-1) must be input_size = {input_size}, got {input.shape[-1]}")


def batch_of_one(name: str, t: Tensor | None, dim: int, dims: int) -> Tensor | None:
    """What goes with an unbatched input, of `dims` dimensions, with a batch dimension at `dim`."""
    if t is None:
        return None
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a Tensor or None, got {type(t).__name__}")
    if t.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimensions for an unbatched input, got {t.dim()}")
    return t.unsqueeze(dim)


def states_of_one(hx: HX, cell: str, dim: int, dims: int) -> HX:
    """The states of an unbatched call with a batch dimension."""
    h_0, c_0 = split_states(hx, cell)
    h_0, c_0 = batch_of_one("h_0", h_0, dim, dims), batch_of_one("c_0", c_0, dim, dims)
    return h_0 if c_0 is None else (h_0, c_0)
