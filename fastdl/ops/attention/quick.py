"""The plan of calls that end in microseconds: a mask, a bias without gradient or causality at most, no setting."""

from __future__ import annotations

from functools import partial

from torch import Tensor, is_grad_enabled

from ...dispatch import settings
from ...transforms import eager
from .backends import Plan
from .plans import context_of, decide, planned, remembered


def quick_plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    causal: bool | str,
    scale: float | None,
    enable_gqa: bool,
) -> Plan | None:
    """The plan of a call without other options, not both a mask and a bias, found in 2 us instead of 30; None: look
    closer. Raises what the checks of a call do.
    """
    if not settings.automatic or not eager():
        return None
    added = mask if bias is None else bias
    if type(q) is not Tensor or type(k) is not Tensor or type(v) is not Tensor:
        return None
    on_cpu = q.is_cpu
    if k.is_cpu is not on_cpu or v.is_cpu is not on_cpu or not (on_cpu or q.is_cuda):
        return None
    recorded = is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    key = (q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, causal, scale, enable_gqa, recorded)
    if added is not None:
        if type(added) is not Tensor or added.requires_grad or added.is_cpu is not on_cpu:
            return None
        key += (added.shape, added.dtype, bias is None)
    if not on_cpu:
        key += (q.device, k.device, v.device, None if added is None else added.device)
    try:
        return planned[key]
    except (KeyError, TypeError):  # new, or with a number that has no hash
        numbers = (causal, None, None, 0.0, scale, None, None)
        return remembered(key, partial(decide, q, k, v, context_of(mask, bias), numbers, enable_gqa, False))
