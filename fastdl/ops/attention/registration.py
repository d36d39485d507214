"""The raw operators: schemas, the reference behind every device without a kernel, shapes for fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..raw_operators import define
from . import schema
from .call import Call
from .reference import Context, reference
from .reference_backward import Saved, reference_backward


def attention(
    q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None | list[int] | list[float]
) -> tuple[Tensor, Tensor]:
    output, lse = reference(q, k, v, Context(*rest[:7]), Call.unpack(*rest[7:9]))
    return output.contiguous(), lse.contiguous()


def attention_backward(
    grad_output: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    *rest: Tensor | None | list[int] | list[float] | bool,
) -> tuple[Tensor, ...]:
    context, call = Context(*rest[:7]), Call.unpack(*rest[7:9])
    saved = Saved(output, lse)
    found = reference_backward(grad_output, grad_lse, q, k, v, saved, context, call, *rest[9:])
    missing = (q.new_empty(0), q.new_empty(0, dtype=torch.float32))
    return tuple(
        (none if t is None else t).contiguous() for t, none in zip(found, (q, k, v, *missing), strict=True)
    )


def fake_attention(
    q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None | list[int] | list[float]
) -> tuple[Tensor, Tensor]:
    packed = Context(*rest[:7]).cu_seqlens_q is not None
    lse = (q.shape[1], q.shape[0]) if packed else q.shape[:-1]
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(lse, dtype=torch.float64)


def fake_attention_backward(
    grad_output: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    *rest: Tensor | None | list[int] | list[float] | bool,
) -> tuple[Tensor, ...]:
    context, (need_bias, need_sink) = Context(*rest[:7]), rest[9:]
    return (
        *(t.new_empty(t.shape) for t in (q, k, v)),
        q.new_empty(context.bias.shape) if need_bias else q.new_empty(0),
        q.new_empty(q.shape[1] if need_sink else 0, dtype=torch.float32),
    )


library = define(schema.SCHEMAS, globals())
