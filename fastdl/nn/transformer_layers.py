"""TransformerEncoderLayer and TransformerDecoderLayer: torch.nn's signatures, parameters and state_dicts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .. import dispatch
from ..ops import linear
from . import nested, sublayers
from .dropout import DROPOUTS
from .leaf import Leaf
from .linear import Linear
from .multihead_attention import MultiheadAttention
from .plain_parts import activation_name, plain, watches_every_module
from .sublayers import Cache

LINEARS = (nn.Linear, Linear)


class TransformerEncoderLayer(Leaf, nn.TransformerEncoderLayer):
    """Self-attention, then two linear layers, each with dropout, residual connection and layer norm.

    Constructor, forward, parameters and state_dict are nn.TransformerEncoderLayer's. Attention is
    `fastdl.nn.MultiheadAttention`; bias, activation and dropout of the linear layers run inside their products,
    unless one of them is not plain torch's or has hooks: then they are called one by one. In float32 on a CPU, where
    nothing is recorded or dropped, each half of the layer is one operator (sublayers.py), of a nested tensor too, which
    nn.TransformerEncoder makes of padded tokens where it can; elsewhere a nested tensor goes through torch's own layer.
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
        if not isinstance(src, Tensor):
            node = self._node(src, src_mask, src_key_padding_mask, is_causal)
            if node is not None:
                return node
        if src.is_nested:
            inferred = None
            if src_mask is None and src_key_padding_mask is None and not is_causal:
                inferred = nested.inferred(src, self._packed)
            if inferred is not None:
                return inferred
            dispatch.require_reference("attention", "a tensor is nested")
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        masks = (src_mask, src_key_padding_mask, is_causal)
        inferred = self._inferred(src, masks)
        if inferred is not None:
            return inferred
        if self.norm_first:
            x = src + self._sa_block(self.norm1(src), *masks)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._sa_block(src, *masks))
        return self.norm2(x + self._ff_block(x))

    def _inferred(self, src: Tensor, masks: tuple[Tensor | None, Tensor | None, bool]) -> Tensor | None:
        """The output by two operators; None: the parts must be called."""
        found = self._sublayers(src)
        x = None if found is None else found[0].infer(src, None, *masks)
        return None if x is None else found[1].infer(x)

    def _packed(self, x: Tensor, lengths: Tensor) -> Tensor | None:
        """The same for sequences one after the other, [1, total, E]."""
        found = self._sublayers(x)
        x = None if found is None else found[0].infer_packed(x, lengths)
        return None if x is None else found[1].infer(x)

    def _sublayers(self, src: Tensor) -> tuple[sublayers.Attention, sublayers.FeedForward] | None:
        """The two operators that are the layer; None: the parts must be called."""
        if _has_own_blocks(self, TransformerEncoderLayer) or not sublayers.may_serve(src):
            return None
        attention = _attention_of(self, "self_attn", "norm1", "dropout1")
        feed_forward = sublayers.feed_forward_of(self, LINEARS, *_beside(self, "norm2", "dropout2"))
        return None if attention is None or feed_forward is None else (attention, feed_forward)

    def _ff_block(self, x: Tensor) -> Tensor:
        return feed_forward(self, x, self.dropout2)


class TransformerDecoderLayer(Leaf, nn.TransformerDecoderLayer):
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

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        paddings = (tgt_key_padding_mask, memory_key_padding_mask)
        masks = (tgt_mask, memory_mask, *paddings, tgt_is_causal, memory_is_causal)
        if not isinstance(tgt, Tensor) and (node := self._node(tgt, memory, *masks)) is not None:
            return node
        own = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        inferred = self._inferred(tgt, memory, own, (memory_mask, memory_key_padding_mask, memory_is_causal))
        return super().forward(tgt, memory, *masks) if inferred is None else inferred

    def _inferred(
        self,
        tgt: Tensor,
        memory: Tensor,
        own: tuple[Tensor | None, Tensor | None, bool],
        other: tuple[Tensor | None, Tensor | None, bool],
    ) -> Tensor | None:
        """The output by three operators; None: the parts must be called."""
        if _has_own_blocks(self, TransformerDecoderLayer) or not sublayers.may_serve(tgt, memory):
            return None
        to_itself = _attention_of(self, "self_attn", "norm1", "dropout1")
        to_memory = _attention_of(self, "multihead_attn", "norm2", "dropout2")
        feed_forward = sublayers.feed_forward_of(self, LINEARS, *_beside(self, "norm3", "dropout3"))
        if to_itself is None or to_memory is None or feed_forward is None:
            return None
        x = to_itself.infer(tgt, None, *own)
        x = None if x is None else to_memory.infer(x, memory, *other)
        return None if x is None else feed_forward.infer(x)

    def step(
        self, x: Tensor, past: Cache, length: int, memory: Cache, memory_mask: Tensor | None = None
    ) -> Tensor:
        """The layer for tokens that follow `length` others; for inference, batch_first.

        Args:
            x: [B, T, E], the new tokens; each sees those before it and itself.
            past: keys and values [B, H, at least length + T, D]; rows from `length` on are filled with those of x.
            length: how many tokens they hold.
            memory: keys and values of the encoder's output, `multihead_attn.project_memory(output)`.
            memory_mask: bool, True is seen; broadcasts to [B, H, T, S].
        """
        x = self._attended("self_attn", "norm1", "dropout1", x, past, length, None)
        x = self._attended("multihead_attn", "norm2", "dropout2", x, memory, -1, memory_mask)
        if not _has_own_blocks(self, TransformerDecoderLayer) and sublayers.may_serve(x):
            found = sublayers.feed_forward_of(self, LINEARS, *_beside(self, "norm3", "dropout3"))
            inferred = None if found is None else found.infer(x)
            if inferred is not None:
                return inferred
        return self._around(self.norm3, x, self._ff_block)

    def _attended(
        self, name: str, norm: str, dropout: str, x: Tensor, cache: Cache, length: int, mask: Tensor | None
    ) -> Tensor:
        """Attention to a cache, after `length` tokens, which x is added to; -1: to all of it."""
        if not _has_own_blocks(self, TransformerDecoderLayer) and sublayers.may_serve(x):
            found = _attention_of(self, name, norm, dropout)
            inferred = None if found is None else found.infer_cached(x, cache, length, mask)
            if inferred is not None:
                return inferred
        module = getattr(self, name)

        def attend(normed: Tensor) -> Tensor:
            if length < 0:
                return module.attend(module.project_query(normed), *cache, mask=mask)
            query, *own = module.project_all(normed)
            end = length + x.shape[1]
            for rows, part in zip(cache, own, strict=True):
                rows[:, :, length:end] = part
            return module.attend(query, *(rows[:, :, :end] for rows in cache), causal="bottom_right")

        return self._around(getattr(self, norm), x, attend)

    def _around(self, norm: nn.Module, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return x + f(norm(x)) if self.norm_first else norm(x + f(x))

    def _ff_block(self, x: Tensor) -> Tensor:
        return feed_forward(self, x, self.dropout3)


def _beside(layer: nn.Module, norm: str, dropout: str) -> tuple[sublayers.Norm | None, bool]:
    """The norm beside a sublayer, and whether the dropout after it acts, or is no plain one."""
    parts = layer._modules
    return sublayers.norm_of(parts.get(norm), layer.norm_first), not sublayers.silent(parts.get(dropout))


def _has_own_blocks(layer: nn.Module, kind: type) -> bool:
    """Whether somebody's class or instance computes a block otherwise."""
    return type(layer) is not kind or not _BLOCKS.isdisjoint(layer.__dict__)


_BLOCKS = frozenset(("_sa_block", "_mha_block", "_ff_block"))


def _attention_of(layer: nn.Module, name: str, norm: str, dropout: str) -> sublayers.Attention | None:
    module = layer._modules.get(name)
    return sublayers.attention_of(module, MultiheadAttention, *_beside(layer, norm, dropout))


def feed_forward(layer: nn.Module, x: Tensor, last: nn.Module) -> Tensor:
    """last(linear2(dropout(activation(linear1(x))))) in two fused products where all of them are torch's own."""
    first, second, dropout = layer.linear1, layer.linear2, layer.dropout
    activation = None if watches_every_module() else activation_name(layer.activation)
    linears = all(plain(one, *LINEARS) and not getattr(one, "dropout_p", 0) for one in (first, second))
    if activation is None or not linears or not all(plain(one, *DROPOUTS) for one in (dropout, last)):
        return last(second(dropout(layer.activation(first(x)))))
    hidden = linear(x, first.weight, first.bias, activation=activation, dropout_p=_probability(dropout))
    return linear(hidden, second.weight, second.bias, dropout_p=_probability(last))


def _probability(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0
