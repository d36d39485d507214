"""Scaled-dot-product attention in plain PyTorch: the definition every backend is held to.

s = scale q k^T;  with softcap s = softcap tanh(s / softcap);  s += bias - alibi_slope |distance|;
s = -inf where the mask, causality or the window hides the key;
lse = log(sum_j exp(s_j) + exp(sink));  p = exp(s - lse);  output = (dropout(p) / (1 - dropout_p)) v
Head h of q sees head h // (H / H_kv) of k and v. A row that sees no key has output 0, gradient 0 and lse = sink, or
-inf without one. Arithmetic is float32 for 16-bit types.

Sources: torch.nn.functional.scaled_dot_product_attention; Press et al. 2022 (ALiBi); Gemma 2 (softcap); gpt-oss
(sink); Dao et al. 2022 (lse).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..accumulation import accumulate_dtype
from .call import Call
from .dropout import kept


class Context(NamedTuple):
    """The tensors of a call besides q, k, v; see schema.py."""

    mask: Tensor | None = None
    bias: Tensor | None = None
    alibi_slopes: Tensor | None = None
    sink: Tensor | None = None
    seed: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None


def reference(q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call) -> tuple[Tensor, Tensor]:
    """(output, lse); differentiable in q, k, v, bias and sink."""
    if context.cu_seqlens_q is None:
        return dense(q, k, v, context, call, 0)
    found = [dense(*one, context, call, b) for b, one in enumerate(sequences(context, q, k, v))]
    if not found:
        lse = q.new_empty(q.shape[1], 0, dtype=torch.float64)
        return q.new_empty(0, q.shape[1], v.shape[2]), lse
    return torch.cat([o[0].transpose(0, 1) for o, _ in found]), torch.cat([lse[0] for _, lse in found], 1)


def sequences(context: Context, *tensors: Tensor) -> list[list[Tensor]]:
    """Packed q, k, v and whatever else has the rows of q -> for each sequence its dense [1, H, L, D] ones."""
    starts_q, starts_k = context.cu_seqlens_q.tolist(), context.cu_seqlens_k.tolist()
    return [
        [
            t[slice(*(starts_k if i in (1, 2) else starts_q)[b : b + 2])].transpose(0, 1)[None]
            for i, t in enumerate(tensors)
        ]
        for b in range(len(starts_q) - 1)
    ]


def dense(q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, first: int) -> tuple[Tensor, Tensor]:
    """`first`: the number of the first sequence, for dropout and ALiBi."""
    p, lse = probabilities(q, k, context, call, first)
    if call.dropout_p:
        p = p * kept(context.seed, first, p.shape, call.dropout_p) / (1 - call.dropout_p)
    return (p @ repeated(v, q.shape[1]).to(p.dtype)).to(q.dtype), lse


def probabilities(q: Tensor, k: Tensor, context: Context, call: Call, first: int) -> tuple[Tensor, Tensor]:
    """(p [B, H, L_q, L_k] before dropout, lse), not in 16 bits."""
    scores = shown_scores(*raw_scores(q, k, call), context, call, first)
    sink = None if context.sink is None else context.sink.to(scores.dtype)[:, None, None]
    return _softmax(scores, sink)


def repeated(t: Tensor, H: int) -> Tensor:
    """[B, H_kv, L, D] -> [B, H, L, D]"""
    return t.repeat_interleave(H // max(t.shape[1], 1), 1)


def raw_scores(q: Tensor, k: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
    """(scores with the softcap, tanh of the softcap or None)"""
    acc = accumulate_dtype(q.dtype)
    scores = q.to(acc) @ repeated(k, q.shape[1]).to(acc).transpose(-1, -2) * call.scale
    if not call.softcap:
        return scores, None
    tanh = (scores / call.softcap).tanh()
    return call.softcap * tanh, tanh


def shown_scores(scores: Tensor, tanh: Tensor | None, context: Context, call: Call, first: int) -> Tensor:
    """The scores with bias and ALiBi, -inf where a key is hidden."""
    (B, _, L_q, L_k), device = scores.shape, scores.device
    if context.bias is not None:
        scores = scores + context.bias.to(scores.dtype)
    if context.alibi_slopes is not None:
        slopes = context.alibi_slopes.to(scores.dtype)
        slopes = slopes if slopes.dim() == 1 else slopes[first : first + B]
        scores = scores - slopes[..., None, None] * call.distance(L_q, L_k, device).abs()
    for seen in (context.mask, call.visible(L_q, L_k, device)):
        scores = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
    return scores


def _softmax(scores: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """exp(scores - lse) and lse, where nothing but -inf gives 0 and -inf, and gradients 0."""
    if scores.shape[-1] == 0:
        lse = scores.new_full(scores.shape[:-1], -torch.inf, dtype=torch.float64)
        return scores, lse if sink is None else lse.logaddexp(sink[..., 0].double())
    highest = scores.amax(-1, keepdim=True)
    highest = highest if sink is None else highest.maximum(sink)
    highest = highest.detach().masked_fill(highest == -torch.inf, 0)
    powers = (scores - highest).exp()
    total = powers.sum(-1, keepdim=True)
    total = total if sink is None else total + (sink - highest).exp()
    closed = total == 0
    total = total.masked_fill(closed, 1)
    lse = (highest.double() + total.double().log()).masked_fill(closed, -torch.inf)
    return powers / total, lse[..., 0]
