"""TransformerEncoderLayer and TransformerDecoderLayer: torch.nn's signatures, parameters and state_dicts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import dispatch
from ..ops import linear
from .linear import Linear
from .multihead_attention import MultiheadAttention

FUNCTIONS = {
    F.relu: "relu",
    torch.relu: "relu",
    F.gelu: "gelu",
    F.silu: "silu",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
}
MODULES = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class TransformerEncoderLayer(nn.TransformerEncoderLayer):
    """Self-attention, then two linear layers, each with dropout, residual connection and layer norm.

    Constructor, forward, parameters and state_dict are nn.TransformerEncoderLayer's. Attention is
    `fastdl.nn.MultiheadAttention`; bias, activation and dropout of the linear layers run inside their products,
    unless one of them is not plain torch's or has hooks: then they are called one by one. A nested tensor, which
    nn.TransformerEncoder makes in eval mode where it can, goes through torch's own layer.
    Errors are those of the parts. Source: torch.nn.TransformerEncoderLayer; Vaswani et al. 2017.

    >>> import fastdl, torch
    >>> fastdl.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)(torch.ones(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.self_attn.__class__ = MultiheadAttention

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        if src.is_nested:
            dispatch.require_reference("attention", "a tensor is nested")
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        masks = (src_mask, src_key_padding_mask, is_causal)
        if self.norm_first:
            x = src + self._sa_block(self.norm1(src), *masks)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._sa_block(src, *masks))
        return self.norm2(x + self._ff_block(x))

    def _ff_block(self, x: Tensor) -> Tensor:
        return feed_forward(self, x, self.dropout2)


class TransformerDecoderLayer(nn.TransformerDecoderLayer):
    """Self-attention, attention to the encoder's output, then two linear layers, as in TransformerEncoderLayer.

    Constructor, forward, parameters and state_dict are nn.TransformerDecoderLayer's; what is fused, and when not,
    is said at `fastdl.nn.TransformerEncoderLayer`. Errors are those of the parts.
    Source: torch.nn.TransformerDecoderLayer; Vaswani et al. 2017.

    >>> import fastdl, torch
    >>> layer = fastdl.nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    >>> layer(torch.ones(2, 5, 8), torch.ones(2, 7, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.self_attn.__class__ = self.multihead_attn.__class__ = MultiheadAttention

    def _ff_block(self, x: Tensor) -> Tensor:
        return feed_forward(self, x, self.dropout3)


def feed_forward(layer: nn.Module, x: Tensor, last: nn.Module) -> Tensor:
    """last(linear2(dropout(activation(linear1(x))))) in two fused products where all of them are torch's own."""
    first, second, dropout = layer.linear1, layer.linear2, layer.dropout
    activation = None if _watches_every_module() else _name(layer.activation)
    linears = all(_plain(one, nn.Linear) or _plain_fused(one) for one in (first, second))
    if activation is None or not linears or not all(_plain(one, nn.Dropout) for one in (dropout, last)):
        return last(second(dropout(layer.activation(first(x)))))
    hidden = linear(x, first.weight, first.bias, activation=activation, dropout_p=_probability(dropout))
    return linear(hidden, second.weight, second.bias, dropout_p=_probability(last))


def _name(activation: object) -> str | None:
    """What `fastdl.ops.linear` calls an activation, if it knows it."""
    if not isinstance(activation, nn.Module):
        return FUNCTIONS.get(activation)
    if not _plain(activation, *MODULES):
        return None
    name = MODULES[type(activation)]
    return "gelu_tanh" if name == "gelu" and activation.approximate == "tanh" else name


def _plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is exactly of one of these kinds, computes what it does, and nobody watches it."""
    if type(module) not in kinds:
        return False
    own = module.__dict__  # attributes of a module are found in 1 us, these in 0.1
    return "forward" not in own and not any(map(own.__getitem__, HOOKS))


def _watches_every_module() -> bool:
    return any(getattr(nn.modules.module, f"_global{hooks}") for hooks in HOOKS)


def _plain_fused(module: nn.Module) -> bool:
    """Whether it is a fastdl.nn.Linear that does what nn.Linear does."""
    return _plain(module, Linear) and not module.dropout_p


def _probability(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0
