"""What torch.nn's recurrent constructors refuse, with torch's kinds of errors."""

from __future__ import annotations

import warnings

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
