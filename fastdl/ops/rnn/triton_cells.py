# What the kernels of a step share: the cells' functions on tiles in registers (float32), the rows of a step, zoneout.
# A tile is BLOCK_B sequences x BLOCK_H units of every gate; how tiles are split over programs is the kernels' matter.
# Nothing is saved here.

import triton
import triton.language as tl

LSTM = tl.constexpr(0)
GRU = tl.constexpr(1)
RNN_TANH = tl.constexpr(2)


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Near zero by the polynomial of Cephes' tanhf: 1 - exp(-2x) would cancel."""
    size = tl.abs(x)
    e = tl.exp(-2 * size)
    s = x * x
    p = (((-5.70498872745e-3 * s + 2.06390887954e-2) * s - 5.37397155531e-2) * s + 1.33314422036e-1) * s
    near = size + size * s * (p - 3.33332819422e-1)
    found = tl.where(size < 0.625, near, (1 - e) / (1 + e))
    return tl.where(x < 0, -found, found)


@triton.jit
def rows_of(offsets_ptr, t, b, T, B, BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr):
    """(row of step t and sequence b in a per-row tensor, whether there is one); t may lie outside of the sequence."""
    inside = (t >= 0) & (t < T)
    sequence = b.to(tl.int64) if INDEX_64 else b
    count = tl.where(inside, B, 0)
    if offsets_ptr is not None:
        first = tl.load(offsets_ptr + t, mask=inside, other=0)
        count = tl.load(offsets_ptr + t + 1, mask=inside, other=0) - first
        row = first + sequence
    elif BATCH_FIRST:
        row = sequence * T + t
    else:
        row = sequence + t * B
    return row, b < count


@triton.jit
def within_length(lengths_ptr, t, b, exists):
    """Which rows of step t lie within their sequence; without lengths all that exist."""
    if lengths_ptr is not None:
        exists = exists & (t < tl.load(lengths_ptr + b, mask=exists, other=0))
    return exists


@triton.jit
def keeps_state(reset_ptr, row, active):
    """Which active rows go on from the state before; the others start from zero."""
    if reset_ptr is not None:
        active = active & (tl.load(reset_ptr + row, mask=active, other=0) == 0)
    return active


@triton.jit
def zoned(new, old, zoneout_ptr, offsets, mask, probability, ZONEOUT: tl.constexpr):
    """`old` where the mask of zoneout says so, else `new`; without a mask the expectation."""
    if zoneout_ptr is not None:
        new = tl.where(tl.load(zoneout_ptr + offsets, mask=mask, other=0) != 0, old, new)
    elif ZONEOUT:
        new = probability * old + (1 - probability) * new
    return new


@triton.jit
def unzoned(arrived, zoneout_ptr, offsets, mask, probability, ZONEOUT: tl.constexpr):
    """The gradient's shares of the new and of the old state."""
    if zoneout_ptr is not None:
        keep = tl.load(zoneout_ptr + offsets, mask=mask, other=0) != 0
        new, old = tl.where(keep, 0.0, arrived), tl.where(keep, arrived, 0.0)
    elif ZONEOUT:
        new, old = arrived * (1 - probability), arrived * probability
    else:
        new, old = arrived, tl.zeros_like(arrived)
    return new, old
