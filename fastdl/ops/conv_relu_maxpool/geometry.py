"""The shape arguments of conv_relu_maxpool, normalised and checked once."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

IntPair = int | tuple[int, int]


class Geometry(NamedTuple):
    """Every pair is (height, width). `pool_size == ()` means conv + ReLU without a pool."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    pool_size: tuple[int, ...]
    pool_stride: tuple[int, ...]
    pool_padding: tuple[int, ...]
    pool_dilation: tuple[int, ...]
    ceil_mode: bool

    def conv_size(self, x: Tensor, weight: Tensor) -> tuple[int, int]:
        """(CH, CW), the height and width of the convolution's output."""
        return tuple(
            (x.shape[2 + i] + 2 * self.padding[i] - self.dilation[i] * (weight.shape[2 + i] - 1) - 1) // self.stride[i]
            + 1
            for i in (0, 1)
        )

    def output_size(self, conv_size: tuple[int, int]) -> tuple[int, int]:
        """(OH, OW), after the pool; torch's rule: with ceil_mode, no window starts beyond the left-padded input."""
        return tuple(self._pooled(conv_size[i], i) for i in (0, 1)) if self.pool_size else conv_size

    def _pooled(self, size: int, i: int) -> int:
        span = size + 2 * self.pool_padding[i] - self.pool_dilation[i] * (self.pool_size[i] - 1) - 1
        if not self.ceil_mode:
            return span // self.pool_stride[i] + 1
        pooled = -(-span // self.pool_stride[i]) + 1
        starts_outside = (pooled - 1) * self.pool_stride[i] >= size + self.pool_padding[i]
        return pooled - 1 if starts_outside else pooled


def pair(value: IntPair, name: str, least: int) -> tuple[int, int]:
    """An int or a pair of ints, each at least `least`, as a pair."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or isinstance(value, bool):
        raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
    if both[0] < least or both[1] < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return both
