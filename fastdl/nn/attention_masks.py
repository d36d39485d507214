"""The two masks of nn.MultiheadAttention, True or -inf where a key is hidden, as those of `fastdl.ops.attention`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

# (bool, True where a key is seen; added to the scores), each broadcasts to [B, H, L, S]
Masks = tuple[Tensor | None, Tensor | None]


def merged(
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    sizes: tuple[int, int, int, int],
    added: int,
    dtype: torch.dtype,
) -> Masks:
    """Both masks together.

    Args:
        key_padding_mask: [B, S], bool or floating.
        attn_mask: [L, S] or [B H, L, S], bool or floating.
        sizes: B, H, L, S.
        added: keys after the S ones, which every query sees.
        dtype: of the scores.

    Raises TypeError or ValueError, with expected and got.
    """
    B, H, L, S = sizes
    found = []
    if key_padding_mask is not None:
        _check("key_padding_mask", key_padding_mask, [(B, S)])
        found.append(key_padding_mask.view(B, 1, 1, S))
    if attn_mask is not None:
        _check("attn_mask", attn_mask, [(L, S), (B * H, L, S)])
        found.append(attn_mask[None, None] if attn_mask.dim() == 2 else attn_mask.reshape(B, H, L, S))
    seen = bias = None
    for mask in found:
        if added:
            mask = pad(mask, (0, added))
        if mask.dtype == torch.bool:
            seen = ~mask if seen is None else seen & ~mask
        else:
            mask = mask.to(dtype)
            bias = mask if bias is None else bias + mask
    return seen, bias


def _check(name: str, mask: Tensor, shapes: list[tuple[int, ...]]) -> None:
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool or floating point Tensor, got {got}")
    if tuple(mask.shape) not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name} must have shape {expected}, got {list(mask.shape)}")
