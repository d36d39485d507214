"""Functions with torch.nn.functional's names, arguments and meaning, over fastdl's kernels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .. import dispatch
from ..ops import attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale query key^T + attn_mask) value: torch's signature and meaning, on `fastdl.ops.attention`.

    Args:
        query: [..., H, L, E] or [..., L, E]; float64, float32, bfloat16 or float16.
        key: [..., H, S, E]; leading dimensions broadcast.
        value: [..., H, S, E_v].
        attn_mask: bool, True takes part, or added to the scores; broadcasts to [..., H, L, S].
        dropout_p: acts in every call, as in torch: pass 0 outside of training. Default 0.
        is_causal: query i sees the keys up to i, whatever L and S are; not with attn_mask. Default False.
        scale: default 1 / sqrt(E).
        enable_gqa: H may be a multiple of the heads of key and value.

    Returns:
        [..., H, L, E_v]. A query that sees no key gives 0.

    Raises:
        TypeError: a tensor is of the wrong kind, or dtypes or devices differ.
        ValueError: shapes do not fit, or dropout_p is not in [0, 1).

    Source: torch.nn.functional.scaled_dot_product_attention.

    >>> import fastdl.nn.functional as F, torch
    >>> F.scaled_dot_product_attention(torch.ones(2, 3, 4), torch.ones(2, 5, 4), torch.ones(2, 5, 4)).shape
    torch.Size([2, 3, 4])
    """
    if not isinstance(query, Tensor) and any(isinstance(each, fx.Proxy) for each in (query, key, value)):
        # a symbolic trace has torch's own call, as it has its layers
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if query.is_nested or key.is_nested or value.is_nested:
        dispatch.require_reference("attention", "a tensor is nested")
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None:
        if is_causal:
            raise ValueError("attn_mask and is_causal=True do not go together")
        if attn_mask.is_floating_point() and attn_mask.dtype is not query.dtype:
            attn_mask = attn_mask.to(query.dtype)
    options = {
        "dropout_p": dropout_p,
        "causal": "top_left" if is_causal else False,
        "scale": scale,
        "enable_gqa": enable_gqa,
    }
    q, k, v = query.shape, key.shape, value.shape
    # sizes one by one: slices of shapes cost 2 us
    if len(q) == len(k) == len(v) == 4 and q[0] == k[0] == v[0] and (enable_gqa or q[1] == k[1] == v[1]):
        return attention(query, key, value, mask=attn_mask, **options)
    lead, tensors = _as_four(query, key, value, enable_gqa)
    if attn_mask is not None and attn_mask.dim() > 2:
        attn_mask = _expanded(attn_mask, "attn_mask", lead)
    return attention(*tensors, mask=attn_mask, **options).reshape(*lead, query.shape[-2], value.shape[-1])


def _as_four(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> tuple[torch.Size, list[Tensor]]:
    """(the leading dimensions of the result, the three as [B, H, L, E])"""
    named = {"query": query, "key": key, "value": value}
    kept = 3 if enable_gqa else 2  # the last dimensions, which do not broadcast
    for name, t in named.items():
        if t.dim() < kept:
            raise ValueError(f"{name} must have at least {kept} dimensions, got {list(t.shape)}")
    try:
        lead = torch.broadcast_shapes(*(t.shape[:-kept] for t in named.values()))
    except RuntimeError as error:
        shapes = [list(t.shape) for t in named.values()]
        raise ValueError(
            f"leading dimensions of query, key and value must broadcast, got {shapes}"
        ) from error
    heads = query.shape[-3:-2] if enable_gqa else ()
    return lead + heads, [
        _expanded(t, name, lead + (t.shape[-3:-2] if enable_gqa else ())) for name, t in named.items()
    ]


def _expanded(t: Tensor, name: str, lead: torch.Size) -> Tensor:
    """[..., L, E] as [B, H, L, E]: `lead` but its last dimension is B, that one is H, none are 1."""
    try:
        whole = t.expand(*lead, *t.shape[-2:])
    except RuntimeError as error:
        raise ValueError(f"{name} must broadcast to {[*lead, '...']}, got {list(t.shape)}") from error
    return whole.reshape(math.prod(lead[:-1]), lead[-1] if lead else 1, *t.shape[-2:])
