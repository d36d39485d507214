"""The choice for calls that end in microseconds: a mask or causality at most, no setting; on the CPU float32."""

from __future__ import annotations

from torch import Size, Tensor, float32, is_grad_enabled
from torch import bool as bool_
from torch._C import _get_tracing_state, _is_any_autocast_enabled
from torch.compiler import is_dynamo_compiling

from ... import _extension
from ...dispatch import settings
from .refusals import FEWEST_DECODED, FEWEST_PRODUCTS, FEWEST_ROWS, small

# By the device's kind, shapes, causality, enable_gqa, whether the call is recorded, and the mask's shape.
_known: dict[tuple, bool] = {}
_KNOWN_MOST = 4096


def quickly_torch(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool | str, enable_gqa: bool
) -> bool:
    """Whether a call without other options is surely torch's, found in 2 us instead of the 20 of a plan.

    Raises whatever comes of arguments that are no tensors or have symbolic sizes. Dtypes and devices of k and v are
    left to torch, which refuses what differs.
    """
    if not settings.automatic or _is_any_autocast_enabled() or is_dynamo_compiling():
        return False
    on_cpu = q.is_cpu
    if type(q) is not Tensor or not (q.dtype is float32 if on_cpu else q.is_cuda):
        return False
    if _get_tracing_state() is not None:
        return False
    recorded = is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    key = (on_cpu, q.shape, k.shape, v.shape, causal, enable_gqa, recorded)
    if mask is not None:
        added = mask.dtype is q.dtype
        # torch gives NaN for NaN in a key that a bool mask hides
        if (
            type(mask) is not Tensor
            or mask.requires_grad
            or not (added or mask.dtype is bool_ and not on_cpu)
        ):
            return False
        key += (mask.shape,)
    known = _known.get(key)
    if known is None:
        if len(_known) >= _KNOWN_MOST:
            _known.clear()
        known = _known[key] = _is_torchs(*key)
    return known


def _is_torchs(
    on_cpu: bool,
    q: Size,
    k: Size,
    v: Size,
    causal: bool | str,
    enable_gqa: bool,
    recorded: bool,
    mask: Size | None = None,
) -> bool:
    """From shapes, as the refusals decide."""
    (B, H, L_q, _), (B_k, H_kv, L_k, _) = q, k
    fit = H_kv == H or (enable_gqa and H_kv and H % H_kv == 0)
    if causal not in (False, "top_left"):
        return False
    if B_k != B or not fit or len(v) != 4 or v[:3] != k[:3] or not B * H * L_q * L_k:
        return False
    if mask is not None:
        broadcasts = len(mask) in (2, 4) and all(
            size in (1, full) for size, full in zip(mask, (B, H, L_q, L_k)[-len(mask) :], strict=True)
        )
        if causal or not broadcasts:
            return False
    if not on_cpu:
        return True
    if not _extension.cpu.loaded:
        return False
    products = q.numel() * L_k
    if L_q >= FEWEST_ROWS:
        return small(products, L_k, causal, recorded)
    fewest = FEWEST_DECODED if mask is None else FEWEST_PRODUCTS
    return H // H_kv * L_q < FEWEST_ROWS and (recorded or products < fewest)
