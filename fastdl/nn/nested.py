"""Nested tensors in torch.strided layout, which nn.TransformerEncoder makes of padded tokens: seen as packed rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# private names of torch: where one is gone, torch's own layer serves
_NAMES = ("_nested_tensor_size", "_nested_tensor_strides", "_nested_tensor_storage_offsets")


def inferred(src: Tensor, layer: Callable[[Tensor, Tensor], Tensor | None]) -> Tensor | None:
    """`layer` of the rows [1, total, E] and the lengths [B], as a nested tensor like src; None: it cannot serve."""
    if (
        type(src) is not Tensor
        or src.layout is not torch.strided
        or not src.is_contiguous()
        or src.dim() != 3
    ):
        return None
    if not hasattr(torch, "_nested_view_from_buffer") or not all(hasattr(src, name) for name in _NAMES):
        return None
    sizes = src._nested_tensor_size()
    if src.requires_grad or len(sizes) == 0 or not (sizes[:, 1] == sizes[0, 1]).all():
        return None
    if src.values().numel() != sizes.prod(1).sum():  # a view of a larger one
        return None
    output = layer(src.values().view(1, -1, int(sizes[0, 1])), sizes[:, 0])
    if output is None:
        return None
    strides, offsets = src._nested_tensor_strides(), src._nested_tensor_storage_offsets()
    return torch._nested_view_from_buffer(output.view(-1), sizes, strides, offsets)
