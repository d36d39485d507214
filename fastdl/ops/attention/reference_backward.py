"""The gradients of attention in plain PyTorch, from q, k, v and what forward gave: scores are computed again.

p = exp(s - lse);  grad_p = (grad_output v^T) keep / (1 - dropout_p);  delta = sum_d grad_output output;
grad_s = p (grad_p - delta + grad_lse);  grad_sink = sum exp(sink - lse) (grad_lse - delta)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .call import Call
from .dropout import kept
from .reference import Context, accumulate_dtype, raw_scores, repeated, sequences, shown_scores


class Gradients(NamedTuple):
    """The five outputs of attention_backward; bias and sink None where not needed."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    sink: Tensor | None


class Saved(NamedTuple):
    """What forward gave."""

    output: Tensor
    lse: Tensor


def reference_backward(
    grad_output: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    saved: Saved,
    context: Context,
    call: Call,
    need_bias: bool,
    need_sink: bool,
) -> Gradients:
    """attention_backward."""
    grad_lse = torch.zeros_like(saved.lse) if grad_lse is None else grad_lse
    if context.cu_seqlens_q is None:
        return _dense(grad_output, grad_lse, q, k, v, saved, context, call, 0, need_bias, need_sink)
    # lse is [H, total_q]: as [total_q, H, 1] it is cut like the rows of q
    rows = (t.transpose(0, 1)[..., None] for t in (saved.lse, grad_lse))
    each = sequences(context, q, k, v, saved.output, grad_output, *rows)
    found = [
        _dense(g, dl[..., 0], q_, k_, v_, Saved(o, lse[..., 0]), context, call, b, False, need_sink)
        for b, (q_, k_, v_, o, g, lse, dl) in enumerate(each)
    ]
    tensors = [
        torch.cat([getattr(one, name)[0].transpose(0, 1) for one in found])
        if found
        else torch.zeros_like(like)
        for name, like in (("q", q), ("k", k), ("v", v))
    ]
    zero = torch.zeros(q.shape[1], device=q.device)
    return Gradients(*tensors, None, sum((one.sink for one in found), zero) if need_sink else None)


def _dense(
    grad_output: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    saved: Saved,
    context: Context,
    call: Call,
    first: int,
    need_bias: bool,
    need_sink: bool,
) -> Gradients:
    acc, H = accumulate_dtype(q.dtype), q.shape[1]
    scores, tanh = raw_scores(q, k, call)
    lse = saved.lse[..., None]
    shown = shown_scores(scores, tanh, context, call, first)
    p = (shown - lse.masked_fill(lse == -torch.inf, 0)).exp().to(acc)
    keep = (
        kept(context.seed, first, p.shape, call.dropout_p) / (1 - call.dropout_p) if call.dropout_p else None
    )
    grad_output = grad_output.to(acc)
    grad_p = grad_output @ repeated(v, H).to(acc).transpose(-1, -2)
    dropped = p
    if keep is not None:
        grad_p, dropped = grad_p * keep, p * keep
    delta = (grad_output * saved.output.to(acc)).sum(-1, keepdim=True)
    grad_lse = grad_lse[..., None].to(acc)
    grad_s = p * (grad_p - delta + grad_lse)
    grad_bias = _unbroadcast(grad_s, context.bias).to(context.bias.dtype) if need_bias else None
    grad_sink = None
    if need_sink:
        share = (context.sink.to(acc)[:, None, None] - lse).exp()
        grad_sink = (share * (grad_lse - delta)).sum((0, 2, 3)).to(context.sink.dtype)
    if tanh is not None:
        grad_s = grad_s * (1 - tanh.square())
    grad_s = grad_s * call.scale
    return Gradients(
        (grad_s @ repeated(k, H).to(acc)).to(q.dtype),
        _grouped(grad_s.transpose(-1, -2) @ q.to(acc), k),
        _grouped(dropped.transpose(-1, -2) @ grad_output, v),
        grad_bias,
        grad_sink,
    )


def _unbroadcast(grad: Tensor, like: Tensor) -> Tensor:
    broadcast = [i for i in range(4) if like.shape[i] == 1 and grad.shape[i] != 1]
    return grad.sum(broadcast, keepdim=True) if broadcast else grad


def _grouped(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient of `repeated`."""
    if like.shape[1] == 0:
        return torch.zeros_like(like)
    return grad.unflatten(1, (like.shape[1], -1)).sum(2).to(like.dtype)
