"""A sublayer, f between a residual connection and a layer norm, in plain PyTorch: what the kernels are held to.

f of attention: out_proj(heads of softmax(q k^T / sqrt(D)) v), q, k, v = in_proj(x); f of feed-forward:
weight_2 activation(weight_1 x + bias_1) + bias_2. Sources: Vaswani et al. 2017, 3.1; Xiong et al. 2020 (pre-norm).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.call import CAUSAL, Call
from ..attention.reference import Context, probabilities
from ..attention.reference import reference as attention
from ..linear.activations import NAMES, activate
from .schema import AROUND


def around(
    x: Tensor,
    f: Callable[[Tensor], Tensor],
    code: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """f(x), x + f(norm(x)) or norm(x + f(x))."""

    def norm(t: Tensor) -> Tensor:
        return F.layer_norm(t, t.shape[-1:], weight, bias, eps)

    if code == AROUND["pre"]:
        return x + f(norm(x))
    return norm(x + f(x)) if code == AROUND["post"] else f(x)


def attention_sublayer(
    x: Tensor, memory: Tensor | None, *arguments: Tensor | None | list[int] | float
) -> Tensor:
    return weighted_attention_sublayer(x, memory, *arguments, True)[0]


def packed_attention_sublayer(
    x: Tensor,
    cu_seqlens: Tensor,
    *arguments: Tensor | None | list[int] | float,
) -> Tensor:
    *parameters, structure, eps = arguments
    sequences = x.split(cu_seqlens.diff().tolist(), 1)
    found = [attention_sublayer(one, None, *parameters, None, None, structure, eps) for one in sequences]
    return torch.cat(found, 1) if found else x


def weighted_attention_sublayer(
    x: Tensor,
    memory: Tensor | None,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    structure: list[int],
    eps: float,
    averaged: bool,
) -> tuple[Tensor, Tensor]:
    num_heads, batch_first, code, causal, _ = structure
    weights = []
    project = heads_by(in_proj_weight, in_proj_bias, num_heads, batch_first)

    def f(normed: Tensor) -> Tensor:
        q, k, v = project(normed, *(normed if memory is None else memory,) * 2)
        call = Call(q.shape[-1] ** -0.5, CAUSAL[causal])
        weights.append(probabilities(q, k, Context(mask, bias), call, 0)[0])
        output = weights[0] @ v
        back = (0, 2, 1, 3) if batch_first else (2, 0, 1, 3)
        return F.linear(output.permute(back).flatten(2), out_proj_weight, out_proj_bias)

    output = around(x, f, code, norm_weight, norm_bias, eps)
    return output, weights[0].mean(1) if averaged else weights[0]


def cached_attention_sublayer(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    past: int,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mask: Tensor | None,
    structure: list[int],
    eps: float,
) -> Tensor:
    num_heads, _, code, _, _ = structure
    project = heads_by(in_proj_weight, in_proj_bias, num_heads, True)

    def f(normed: Tensor) -> Tensor:
        q, *own = project(*(normed,) * (1 if past < 0 else 3))
        end = keys.shape[2] if past < 0 else past + x.shape[1]
        for cache, part in zip((keys, values), own, strict=False):
            cache[:, :, past:end] = part
        call = Call(q.shape[-1] ** -0.5, False if past < 0 else "bottom_right")
        output, _ = attention(q, keys[:, :, :end], values[:, :, :end], Context(mask), call)
        return F.linear(output.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias)

    return around(x, f, code, norm_weight, norm_bias, eps)


def heads_by(
    weight: Tensor, bias: Tensor | None, num_heads: int, batch_first: bool
) -> Callable[..., list[Tensor]]:
    """The projection of tokens for queries, then for keys, then for values -> each [B, H, L, D]."""
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    order = (0, 2, 1, 3) if batch_first else (1, 2, 0, 3)

    def project(*tokens: Tensor) -> list[Tensor]:
        projected = [F.linear(*one) for one in zip(tokens, weight.chunk(3), biases, strict=False)]
        return [t.unflatten(-1, (num_heads, -1)).permute(order) for t in projected]

    return project


def feed_forward_sublayer(
    x: Tensor,
    weight_1: Tensor,
    bias_1: Tensor | None,
    weight_2: Tensor,
    bias_2: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    activation: int,
    code: int,
    eps: float,
) -> Tensor:
    def f(normed: Tensor) -> Tensor:
        return F.linear(activate(F.linear(normed, weight_1, bias_1), NAMES[activation]), weight_2, bias_2)

    return around(x, f, code, norm_weight, norm_bias, eps)


def empty_like_x(x: Tensor, *_: object) -> Tensor:
    """The shape of a result."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def empty_with_weights(x: Tensor, memory: Tensor | None, *rest: object) -> tuple[Tensor, Tensor]:
    """The shapes of a result and of its weights."""
    (num_heads, batch_first, *_), averaged = rest[-3], rest[-1]
    B, L = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    S = L if memory is None else memory.shape[1 if batch_first else 0]
    return empty_like_x(x), x.new_empty((B, L, S) if averaged else (B, num_heads, L, S))
