"""nn.MultiheadAttention and the Transformer layers, replaced as they are, wherever they are called."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .. import nn as fused_nn
from .patterns import Whole, module_refusal, parameter_refusal

_CLASSES = {
    nn.MultiheadAttention: fused_nn.MultiheadAttention,
    nn.TransformerEncoderLayer: fused_nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer: fused_nn.TransformerDecoderLayer,
}


class AttentionModule(Whole):
    """A module with submodules; the attention of a layer is measured as what it will be."""

    def compute(
        self,
        modules: dict[str, nn.Module],
        args: tuple,
        kwargs: Mapping[str, object],
        fused: bool,
        exact: bool,
    ) -> tuple[object, None]:
        twin = modules[""]
        for part, original in zip(twin.modules(), self.module.modules(), strict=True):
            if isinstance(original, nn.Dropout):
                part.p = 0.0 if exact else original.p
            if isinstance(original, tuple(_CLASSES)):
                part.__class__ = _CLASSES.get(type(original), type(original)) if fused else type(original)
            if isinstance(original, nn.MultiheadAttention):
                part.dropout = 0.0 if exact else original.dropout
        return twin(*args, **kwargs), None


def is_head(module: nn.Module) -> bool:
    """No forward is read for these: they are replaced one by one."""
    return False


def whole(module: nn.Module) -> Whole | None:
    """The module if it is one of torch's, or of a class made from one."""
    base = next((kind for kind in _CLASSES if isinstance(module, kind)), None)
    if base is None or isinstance(module, _CLASSES[base]):
        return None
    description = f"{base.__name__} as fastdl.nn.{base.__name__}"
    return AttentionModule(module, _CLASSES[base], description, _refusal(module, base))


def _refusal(module: nn.Module, base: type) -> str | None:
    reason = module_refusal(module, (base,))
    if reason is not None:
        return reason
    if type(module) is not base:
        return f"{type(module).__name__} is a subclass of {base.__name__}"
    if base is not nn.MultiheadAttention:
        named = module.named_modules(remove_duplicate=False)
        return "one module takes two places in it" if len(list(named)) > len(list(module.modules())) else None
    # weight_norm and pruning take the Parameter away
    missing = [name for name in ("in_proj_weight", "q_proj_weight") if name not in module._parameters]
    if missing:
        return f"{missing[0]} is not a Parameter of the {base.__name__}"
    if module.bias_k is not None or module.add_zero_attn:
        return "bias_k and add_zero_attn add keys, which torch hides under is_causal and fastdl does not"
    if module.dropout >= 1:
        return f"dropout {module.dropout} is not below 1"
    return parameter_refusal(module, module.out_proj)
