"""nn.LSTM, nn.GRU, nn.RNN and their cells, replaced as they are, wherever they are called."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .. import nn as fused
from .assignment import assign, take_assigned_back
from .patterns import Whole, module_refusal, parameter_refusal


class _Applied(nn.Module):
    """To a function given to `apply`, which may initialise by isinstance, the layer is what it was."""

    def apply(self, fn: Callable[[nn.Module], None]) -> nn.Module:
        kind = type(self)
        take_assigned_back(self)
        try:
            return self.apply(fn)
        finally:
            assign(self, kind)


class LSTM(_Applied, fused.LSTM):
    pass


class GRU(_Applied, fused.GRU):
    pass


class RNN(_Applied, fused.RNN):
    pass


_CLASSES = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: fused.LSTMCell,
    nn.GRUCell: fused.GRUCell,
    nn.RNNCell: fused.RNNCell,
}


def is_head(module: nn.Module) -> bool:
    """No forward is read for these: they are replaced one by one."""
    return False


def whole(module: nn.Module) -> Whole | None:
    """The module if it is one of torch's, or of a class made from one."""
    base = next((kind for kind in _CLASSES if isinstance(module, kind)), None)
    if base is None or isinstance(module, _CLASSES[base]):
        return None
    kind = _CLASSES[base]
    description = f"{base.__name__} as fastdl.nn.{kind.__name__}"
    if not issubclass(kind, base):
        description += f"; isinstance(nn.{base.__name__}) holds in apply() alone"
    return Whole(module, kind, description, _refusal(module, base))


def _refusal(module: nn.Module, base: type) -> str | None:
    reason = module_refusal(module, (base,))
    if reason is not None:
        return reason
    if type(module) is not base:
        return f"{type(module).__name__} is a subclass of {base.__name__}"
    # weight_norm and pruning take the Parameter away
    names = getattr(module, "_flat_weights_names", ("weight_ih", "weight_hh"))
    missing = [name for name in names if name not in module._parameters]
    if missing:
        return f"{missing[0]} is not a Parameter of the {base.__name__}"
    return parameter_refusal(module)
