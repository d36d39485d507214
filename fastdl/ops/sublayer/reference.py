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
from ..attention.reference import Context
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
) -> Tensor:
    num_heads, batch_first, code, causal, _ = structure
    D = x.shape[-1] // num_heads
    weights = in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    order = (0, 2, 1, 3) if batch_first else (1, 2, 0, 3)

    def f(normed: Tensor) -> Tensor:
        tokens = (normed, *(normed if memory is None else memory,) * 2)
        projected = [F.linear(*one) for one in zip(tokens, weights, biases, strict=True)]
        q, k, v = (t.unflatten(-1, (num_heads, D)).permute(order) for t in projected)
        output, _ = attention(q, k, v, Context(mask, bias), Call(D**-0.5, CAUSAL[causal]))
        back = (0, 2, 1, 3) if batch_first else (2, 0, 1, 3)
        return F.linear(output.permute(back).flatten(2), out_proj_weight, out_proj_bias)

    return around(x, f, code, norm_weight, norm_bias, eps)


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
    """The shape of either result."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)
