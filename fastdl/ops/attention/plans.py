"""Who serves a call, from its metadata: checked, chosen, and remembered."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import dispatch
from ..plans import Plans
from .backends import Plan, make_plan
from .call import Call
from .checks import check_call, check_tensors, longest
from .reference import Context

planned: Plans[Plan] = Plans()


def plan_of(
    q: Tensor, k: Tensor, v: Tensor, context: Context, numbers: tuple, enable_gqa: bool, return_lse: bool
) -> Plan:
    """The plan of a call. Checking and choosing take tens of microseconds, remembering a few."""
    packed = context.cu_seqlens_q is not None or context.cu_seqlens_k is not None
    # the content of cu_seqlens is checked in every call
    if packed or torch.compiler.is_compiling():
        return decide(q, k, v, context, numbers, enable_gqa, return_lse)
    settings = dispatch.settings
    key = (
        q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride(), q.dtype, k.dtype, v.dtype,
        q.device, k.device, v.device,
        *(None if t is None else (t.shape, t.dtype, t.device, t.requires_grad) for t in context),
        numbers, enable_gqa, return_lse, torch.is_grad_enabled(),
        settings.backend, settings.strict, settings.precision,
    )  # fmt: skip
    return remembered(key, lambda: decide(q, k, v, context, numbers, enable_gqa, return_lse))


def remembered(key: tuple, planner: Callable[[], Plan]) -> Plan:
    """`planner()`, once for each key."""
    plan = planned.get(key)
    if plan is None:
        plan = planner()
        planned.put(key, plan)
    return plan


def context_of(mask: Tensor | None, bias: Tensor | None, *rest: Tensor | None) -> Context:
    """A float mask is a bias."""
    if mask is not None and mask.is_floating_point():
        mask, bias = None, mask if bias is None else mask + bias
    return Context(mask, bias, *rest)


def decide(
    q: Tensor, k: Tensor, v: Tensor, context: Context, numbers: tuple, enable_gqa: bool, return_lse: bool
) -> Plan:
    """The plan of a call that is checked first. Raises what `fastdl.ops.attention` says."""
    call = normalise(q, k, v, context, numbers, enable_gqa)
    if not k.shape[1]:
        # no heads: nothing to compute, and a ratio of heads that no kernel can form
        return make_plan(dispatch.Choice("reference", "torch"), call)
    choice = dispatch.choose("attention", q, k, v, context, call, return_lse)
    return make_plan(choice, call)


def normalise(q: Tensor, k: Tensor, v: Tensor, context: Context, numbers: tuple, enable_gqa: bool) -> Call:
    """The call, checked; numbers: causal, window, softcap, dropout_p, scale, max_seqlen_q, max_seqlen_k."""
    causal, window, softcap, dropout_p, scale, max_q, max_k = numbers
    check_tensors(q, k, v, context, enable_gqa)
    packed = context.cu_seqlens_q is not None
    max_q = longest("max_seqlen_q", max_q, context.cu_seqlens_q, q.shape[0]) if packed else 0
    max_k = longest("max_seqlen_k", max_k, context.cu_seqlens_k, k.shape[0]) if packed else 0
    return check_call(q.shape[-1], causal, window, softcap, dropout_p, scale, max_q, max_k)
