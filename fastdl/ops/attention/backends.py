"""How each backend and algorithm carries a plan out."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...dispatch import Choice
from . import registration, triton_ops  # noqa: F401, the operators below must be defined
from .call import Call
from .reference import Context
from .reference_backward import Gradients


class RawOperators(NamedTuple):
    """The family's raw operators of one backend. An overload called directly skips 1 us of overload resolution."""

    forward: torch._ops.OpOverload
    backward: torch._ops.OpOverload


_compiled = RawOperators(torch.ops.fastdl.attention.default, torch.ops.fastdl.attention_backward.default)
# cpu and cuda are two keys of the same operators; Triton's are operators of their own.
_triton = RawOperators(
    torch.ops.fastdl.attention_triton.default, torch.ops.fastdl.attention_backward_triton.default
)
RAW = {"cpu": _compiled, "cuda": _compiled, "triton": _triton}


class Plan(NamedTuple):
    """Everything about a call that follows from metadata: decided once a signature, then remembered."""

    backend: str
    algorithm: str
    call: Call
    integers: list[int]
    numbers: list[float]


# What other kernels than those by block of keys are called where a call crosses to C++ and Triton.
_KERNELS = {"decode": 1, "short": 2, "hopper": 3}


def make_plan(choice: Choice, call: Call) -> Plan:
    """The plan of a choice."""
    integers = call.packed_integers()
    integers[-1] = _KERNELS.get(choice.algorithm, 0)
    return Plan(*choice, call, integers, call.packed_numbers())


def sdpa(q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call) -> Tensor:
    """The whole call by torch, differentiable."""
    mask = context.mask if context.bias is None else context.bias
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=call.dropout_p,
        is_causal=bool(call.causal),
        scale=call.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def forward(plan: Plan, q: Tensor, k: Tensor, v: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """(output, lse)"""
    return RAW[plan.backend].forward(q, k, v, *context, plan.integers, plan.numbers)


def backward(
    plan: Plan,
    grad_output: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    context: Context,
    need_bias: bool,
    need_sink: bool,
) -> Gradients:
    """Gradients; of bias and sink None where not needed."""
    found = RAW[plan.backend].backward(
        grad_output,
        grad_lse,
        q,
        k,
        v,
        output,
        lse,
        *context,
        plan.integers,
        plan.numbers,
        need_bias,
        need_sink,
    )
    return Gradients(*found[:3], found[3] if need_bias else None, found[4] if need_sink else None)
