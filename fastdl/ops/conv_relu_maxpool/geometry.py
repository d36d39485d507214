"""The shape arguments of conv_relu_maxpool, normalised and checked once."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import Tensor

IntPair = int | tuple[int, int]
MAX_WINDOW = 255  # one byte per pooled element names the position of the maximum; 255 is the closed ReLU


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

    def packed(self) -> list[int]:
        """stride, padding, dilation (two ints each), groups, then `packed_pool()`: how it crosses to the kernels."""
        return [*self.stride, *self.padding, *self.dilation, self.groups, *self.packed_pool()]

    def packed_pool(self) -> list[int]:
        """pool_size, pool_stride, pool_padding, pool_dilation (two ints each), ceil_mode; empty without a pool."""
        if not self.pool_size:
            return []
        pool = (*self.pool_size, *self.pool_stride, *self.pool_padding, *self.pool_dilation)
        return [*pool, int(self.ceil_mode)]

    @classmethod
    def unpack(cls, packed: list[int]) -> Geometry:
        """The inverse of `packed()`."""
        conv, pool = tuple(packed[:7]), tuple(packed[7:])
        pools = (
            (pool[0:2], pool[2:4], pool[4:6], pool[6:8], bool(pool[8])) if pool else ((), (), (), (), False)
        )
        return cls(conv[0:2], conv[2:4], conv[4:6], conv[6], *pools)

    @classmethod
    def unpack_pool(cls, packed: list[int]) -> Geometry:
        """The geometry of a 1x1 convolution with the pool of `packed_pool()`."""
        return cls.unpack([1, 1, 0, 0, 1, 1, 1, *packed])

    def conv_size(self, x: Tensor, weight: Tensor) -> tuple[int, int]:
        """(CH, CW), the height and width of the convolution's output."""
        return tuple(
            (x.shape[2 + i] + 2 * self.padding[i] - self.dilation[i] * (weight.shape[2 + i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        )

    def output_size(self, conv_size: tuple[int, int]) -> tuple[int, int]:
        """(OH, OW), after the pool; torch's rule: with ceil_mode, no window starts beyond the left-padded input."""
        return tuple(self._pooled(conv_size[i], i) for i in (0, 1)) if self.pool_size else conv_size

    def window_refusal(self) -> str | None:
        """Why not a kernel that records the maximum of a window in one byte."""
        if not self.pool_size or self.pool_size[0] * self.pool_size[1] <= MAX_WINDOW:
            return None
        return f"windows of {self.pool_size[0]} x {self.pool_size[1]}: more than {MAX_WINDOW} elements"

    def _pooled(self, size: int, i: int) -> int:
        span = size + 2 * self.pool_padding[i] - self.pool_dilation[i] * (self.pool_size[i] - 1) - 1
        if not self.ceil_mode:
            return span // self.pool_stride[i] + 1
        pooled = -(-span // self.pool_stride[i]) + 1
        starts_outside = (pooled - 1) * self.pool_stride[i] >= size + self.pool_padding[i]
        return pooled - 1 if starts_outside else pooled


def pair(value: IntPair, name: str, least: int) -> tuple[int, int]:
    """An int, a sequence of one or a pair of ints, each at least `least`, as a pair."""
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    both = tuple(
        None if isinstance(v, bool) else integer(v) for v in (given * 2 if len(given) == 1 else given)
    )
    if len(both) != 2 or any(v is None for v in both):
        raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
    if both[0] < least or both[1] < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return both


def integer(value: object) -> int | torch.SymInt | None:
    """What torch takes for an integer (of numpy too), as one; None for anything else."""
    if isinstance(value, (int, torch.SymInt)):
        return value
    if isinstance(value, Tensor):  # a tensor may change later, the remembered plan would not
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_groups(groups: object) -> int:
    """`groups` as a positive int."""
    found = integer(groups)
    if found is None or found < 1:
        raise ValueError(f"groups must be a positive int, got {groups!r}")
    return found


def check_kinds(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """TypeError unless each is a Tensor (bias: or None)."""
    if isinstance(x, Tensor) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor)):
        return
    for name, t in (("x", x), ("weight", weight), ("bias", bias)):
        if not (isinstance(t, Tensor) or (t is None and name == "bias")):
            raise TypeError(f"{name} must be a Tensor, got {type(t).__name__}")


def normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntPair,
    padding: IntPair | str,
    dilation: IntPair,
    groups: int,
    pool_size: IntPair | None,
    pool_stride: IntPair | None,
    pool_padding: IntPair,
    pool_dilation: IntPair,
    ceil_mode: bool,
    return_indices: bool,
) -> tuple[Geometry, tuple[int, int, int, int] | None]:
    """Check every argument and return the geometry, and the padding x needs first where "same" is uneven."""
    groups = check_groups(groups)
    _check_tensors(x, weight, bias, groups)
    stride, dilation = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
    padding, uneven = _padding(padding, stride, dilation, weight)
    if pool_size is None:
        if return_indices:
            raise ValueError("return_indices needs a pool_size")
        pools = ((), (), (), ())
    else:
        pools = _pool(pool_size, pool_stride, pool_padding, pool_dilation)
    g = Geometry(stride, padding, dilation, groups, *pools, bool(ceil_mode))
    _check_sizes(x, weight, g, uneven)
    return g, uneven


def _check_tensors(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"x must have shape [N, C, H, W] or [C, H, W], got {list(x.shape)}")
    if weight.dim() != 4:
        raise ValueError(f"weight must have shape [C_out, C/groups, KH, KW], got {list(weight.shape)}")
    for name, t in (("x", x), ("weight", weight), ("bias", bias)):
        if t is None:
            continue
        if not t.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {t.dtype}")
        if t.dtype != x.dtype:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {t.dtype}")
        if t.device != x.device:
            raise TypeError(f"{name} must be on the device of x, {x.device}, got {t.device}")
    C, C_out = x.shape[1], weight.shape[0]
    if C % groups or C_out % groups:
        raise ValueError(f"groups must divide C = {C} and C_out = {C_out}, got {groups}")
    if weight.shape[1] != C // groups:
        expected = [C_out, C // groups, *weight.shape[2:]]
        raise ValueError(
            f"weight must have shape [C_out, C/groups, KH, KW] = {expected}, got {list(weight.shape)}"
        )
    if min(weight.shape) < 1:
        raise ValueError(f"weight must not be empty, got {list(weight.shape)}")
    if min(x.shape[1:]) < 1:
        raise ValueError(f"x must not be empty except in N, got {list(x.shape)}")
    if bias is not None and tuple(bias.shape) != (C_out,):
        raise ValueError(f"bias must have shape [C_out] = [{C_out}], got {list(bias.shape)}")


def _padding(
    padding: IntPair | str, stride: tuple[int, int], dilation: tuple[int, int], weight: Tensor
) -> tuple[tuple[int, int], tuple[int, int, int, int] | None]:
    if not isinstance(padding, str):
        return pair(padding, "padding", 0), None
    if padding == "valid":
        return (0, 0), None
    if padding != "same":
        raise ValueError(f"padding must be ints, 'same' or 'valid', got {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got {stride}")
    total = [dilation[i] * (weight.shape[2 + i] - 1) for i in (0, 1)]
    before = (total[0] // 2, total[1] // 2)
    extra_h, extra_w = total[0] % 2, total[1] % 2
    return before, (0, extra_w, 0, extra_h) if extra_h or extra_w else None


def _pool(
    size: IntPair, stride: IntPair | None, padding: IntPair, dilation: IntPair
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
    size = pair(size, "pool_size", 1)
    stride = size if stride is None else pair(stride, "pool_stride", 1)
    padding, dilation = pair(padding, "pool_padding", 0), pair(dilation, "pool_dilation", 1)
    if padding[0] * 2 > size[0] or padding[1] * 2 > size[1]:
        raise ValueError(f"pool_padding must be at most half of pool_size {size}, got {padding}")
    return size, stride, padding, dilation


def _check_sizes(x: Tensor, weight: Tensor, g: Geometry, uneven: tuple[int, int, int, int] | None) -> None:
    extra_w, extra_h = (uneven[1], uneven[3]) if uneven else (0, 0)
    CH, CW = g.conv_size(x, weight)
    # "same" adds rows only where the stride is 1
    CH, CW = CH + extra_h, CW + extra_w
    if CH < 1 or CW < 1:
        raise ValueError(
            f"the convolution's output would be [{CH}, {CW}]: kernel {list(weight.shape[2:])} with dilation "
            f"{g.dilation} is larger than the padded input of {list(x.shape[2:])}, padding {g.padding}"
        )
    for i, size in enumerate((CH, CW) if g.pool_size else ()):
        if g.pool_padding[i] > 0 and size < g.pool_dilation[i]:
            raise ValueError(
                f"pool_dilation {g.pool_dilation} with padding {g.pool_padding} puts a whole window into the padding "
                f"of the convolution's output [{CH}, {CW}]"
            )
    OH, OW = g.output_size((CH, CW))
    if OH < 1 or OW < 1:
        raise ValueError(
            f"the output would be [{OH}, {OW}]: pool_size {g.pool_size} does not fit in [{CH}, {CW}]"
        )
