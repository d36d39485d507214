"""The sublayers of a Transformer layer as one operator each, for inference: where every part is torch's own or ours.

Part by part a small layer spends more time between its products than in them. An operator is called where nothing is
recorded, no dropout acts, nobody watches a part by hooks, and the sizes are those at which it is faster.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .. import _extension
from ..dispatch import settings
from ..ops import products
from ..ops.attention.refusals import FEWEST_ROWS
from ..ops.linear import sizes
from ..ops.linear.activations import ACTIVATIONS
from ..ops.sublayer import registration  # noqa: F401, the operators below must be defined
from ..ops.sublayer.schema import AROUND
from ..transforms import eager
from .attention_masks import merged
from .dropout import DROPOUTS
from .plain_parts import activation_name, parameters_of, plain, watches_every_module

_attention = torch.ops.fastdl.attention_sublayer.default
_packed_attention = torch.ops.fastdl.packed_attention_sublayer.default
_weighted_attention = torch.ops.fastdl.weighted_attention_sublayer.default
_cached_attention = torch.ops.fastdl.cached_attention_sublayer.default
_feed_forward = torch.ops.fastdl.feed_forward_sublayer.default


# keys and values of the tokens so far, [B, H, length, D] each
Cache = tuple[Tensor, Tensor]


class Norm(NamedTuple):
    """A layer norm and where it stands: a key of AROUND; without one, f alone."""

    where: str | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0


class Attention(NamedTuple):
    """What the operator is given of an nn.MultiheadAttention and the norm beside it."""

    parameters: tuple[Tensor | None, ...]  # weight and bias of in_proj, of out_proj
    num_heads: int
    batch_first: bool
    norm: Norm

    def infer(
        self,
        x: Tensor,
        memory: Tensor | None,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        is_causal: bool,
        averaged: bool | None = None,
    ) -> Tensor | tuple[Tensor, Tensor] | None:
        """The sublayer of x and of memory, None: of x itself, both of which `may_serve`; None: call the parts.

        `averaged`: with its weights, averaged over the heads or not.
        """
        if is_causal and attn_mask is None:
            return None  # an error, which the parts raise
        in_proj_weight, *_ = self.parameters
        batch, sequence = (0, 1) if self.batch_first else (1, 0)
        keys = x if memory is None else memory
        B, L, S, E = x.shape[batch], x.shape[sequence], keys.shape[sequence], in_proj_weight.shape[1]
        if (
            x.shape[2] != E
            or keys.shape[2] != E
            or keys.shape[batch] != B
            or not faster(B * L, in_proj_weight)
        ):
            return None
        masks = (None, None)
        if key_padding_mask is not None or (attn_mask is not None and not is_causal):
            sizes = (B, self.num_heads, L, S)
            masks = merged(key_padding_mask, None if is_causal else attn_mask, sizes, 0, x.dtype)
            if not all(t is None or _is_plain(t) for t in masks):
                return None
        _, weight, bias, eps = self.norm
        code, causal = AROUND[self.norm.where], bool(is_causal)
        structure = [self.num_heads, self.batch_first, code, causal, L < FEWEST_ROWS]
        arguments = (x, memory, *self.parameters, weight, bias, *masks, structure, eps)
        return _attention(*arguments) if averaged is None else _weighted_attention(*arguments, averaged)

    def infer_packed(self, x: Tensor, lengths: Tensor) -> Tensor | None:
        """The sublayer of sequences of these lengths one after the other, x [1, total, E]; None: call the parts."""
        if not self.batch_first or not faster(x.shape[1], self.parameters[0]):
            return None
        where, weight, bias, eps = self.norm
        cu_seqlens = pad(lengths.cumsum(0), (1, 0))
        structure = [self.num_heads, True, AROUND[where], 0, int(lengths.max()) < FEWEST_ROWS]
        return _packed_attention(x, cu_seqlens, *self.parameters, weight, bias, structure, eps)

    def infer_cached(self, x: Tensor, cache: Cache, past: int, mask: Tensor | None) -> Tensor | None:
        """The sublayer of x [B, L, E] after `past` tokens, in a cache that x is added to; -1: of all the cache has."""
        keys, values = cache
        in_proj_weight, *_ = self.parameters
        plain = _is_plain(keys) and _is_plain(values) and keys.is_contiguous() and values.is_contiguous()
        if not plain or not self.batch_first or not faster(x.shape[0] * x.shape[1], in_proj_weight):
            return None
        if mask is not None:
            if not _is_plain(mask) or mask.dtype is not torch.bool:
                return None
            mask = mask[(None,) * (4 - mask.dim())]
        if past >= 0 and not keys.is_inference():
            torch.autograd.graph.increment_version(cache)
        where, weight, bias, eps = self.norm
        structure = [self.num_heads, True, AROUND[where], 0, x.shape[1] < FEWEST_ROWS]
        return _cached_attention(x, keys, values, past, *self.parameters, weight, bias, mask, structure, eps)


class FeedForward(NamedTuple):
    """What the operator is given of two linear layers, their activation and the norm beside them."""

    parameters: tuple[Tensor | None, ...]  # weight and bias of linear1, of linear2
    activation: str
    norm: Norm

    def infer(self, x: Tensor) -> Tensor | None:
        """The sublayer of x, which `may_serve`; None: call the parts."""
        first = self.parameters[0]
        if x.shape[2] != first.shape[1] or not faster(x.shape[0] * x.shape[1], first):
            return None
        where, weight, bias, eps = self.norm
        code = ACTIVATIONS[self.activation]
        return _feed_forward(x, *self.parameters, weight, bias, code, AROUND[where], eps)


def may_serve(*inputs: Tensor) -> bool:
    """Whether tokens [B, L, E] or [L, B, E] are such as the operators take."""
    if not settings.automatic or not eager() or not _extension.cpu.loaded or watches_every_module():
        return False
    if torch._C._len_torch_function_stack():  # a mode wants to see torch's functions
        return False
    return all(_is_plain(t) and t.dtype is torch.float32 and t.dim() == 3 for t in inputs)


def _is_plain(t: Tensor) -> bool:
    recorded = t.requires_grad and torch.is_grad_enabled()
    return type(t) is Tensor and t.is_cpu and not recorded


def attention_of(module: object, kind: type, norm: Norm | None, drops: bool = False) -> Attention | None:
    """The operator for a module that is exactly of our `kind`; None: its parts must be called."""
    if norm is None or drops or type(module) is not kind or not module._qkv_same_embed_dim:
        return None
    if (module.training and module.dropout) or module.bias_k is not None or module.add_zero_attn:
        return None
    own = parameters_of(module, (kind,), "in_proj_weight", "in_proj_bias")
    out = parameters_of(module._modules.get("out_proj"), (_OUT_PROJ,), "weight", "bias")
    if own is None or out is None:
        return None
    return Attention((*own, *out), module.num_heads, module.batch_first, norm)


def feed_forward_of(
    layer: nn.Module, linears: tuple[type, ...], norm: Norm | None, drops: bool
) -> FeedForward | None:
    """The operator for the linear layers of a Transformer layer; None: its parts must be called."""
    parts = layer._modules
    activation = activation_name(layer.activation)
    if norm is None or activation is None or drops or not silent(parts.get("dropout")):
        return None
    both = parts.get("linear1"), parts.get("linear2")
    first, second = (parameters_of(one, linears, "weight", "bias") for one in both)
    if first is None or second is None or any("dropout_p" in one.__dict__ for one in both):
        return None
    return FeedForward((*first, *second), activation, norm)


def norm_of(module: object, norm_first: bool) -> Norm | None:
    """None: it is no plain layer norm over the last axis with a weight."""
    found = parameters_of(module, (nn.LayerNorm,), "weight", "bias")
    if found is None or found[0] is None or found[0].dim() != 1:
        return None
    return Norm("pre" if norm_first else "post", *found, module.eps)


def silent(dropout: object) -> bool:
    """Whether it is a plain dropout that lets everything pass."""
    return plain(dropout, *DROPOUTS) and not (dropout.training and dropout.p)


def faster(tokens: int, weight: Tensor) -> bool:
    """Whether the operator is faster than its parts, which leave products to torch, for so many tokens."""
    N, E = weight.shape
    if products.mkl_on_amd():
        return True
    if products.wide_mkl():  # measured on a Xeon: 1.1 to 1.4 times as fast, beyond these sizes 0.9 to 1
        return tokens <= 256 or E <= 128 or (E <= 256 and tokens <= 1024)
    return not sizes.product_near_limit(tokens, N, E)


_OUT_PROJ = nn.modules.linear.NonDynamicallyQuantizableLinear
