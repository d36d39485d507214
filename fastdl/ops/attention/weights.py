"""Attention that returns its weights: O(L_q L_k) memory, so plain PyTorch, whatever the device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ... import dispatch
from ...transforms import autocast
from ..accumulation import accumulate_dtype
from .call import Call
from .checks import check_call, check_kinds, check_tensors
from .reference import Context, probabilities


def attention_and_weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`attention`, and the weights it took: the softmax after dropout, [B, H, L_q, L_k] in the dtype of q.

    Arguments and errors are those of `attention`. Raises UnsupportedError under `fastdl.strict()` and where
    another backend than the reference is forced.
    """
    check_kinds(q=q, k=k, v=v, mask=mask, bias=bias)
    dispatch.require_reference("attention", "its weights are returned")
    q, k, v, bias = autocast(q, k, v, bias)
    context = Context(mask, bias)
    check_tensors(q, k, v, context, enable_gqa=False)
    call: Call = check_call(q.shape[-1], False, None, None, dropout_p, None, 0, 0)
    if mask is None and bias is None:
        acc = accumulate_dtype(q.dtype)
        weights = ((q.to(acc) * call.scale) @ k.to(acc).transpose(-1, -2)).softmax(-1)
    else:
        weights = probabilities(q, k, context, call, 0)[0]
    weights = F.dropout(weights, call.dropout_p)
    return (weights @ v.to(weights.dtype)).to(q.dtype), weights.to(q.dtype)
