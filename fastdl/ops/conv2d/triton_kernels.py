# y = activation(scale y + bias + residual), in place after somebody else's convolution.
# One program: a tile of the matrix of planes by positions (contiguous) or of pixels by channels (channels_last).
# Saves nothing.

import triton
import triton.language as tl

from ..linear.triton_epilogue import RELU, activate

# The codes of activations.py that linear has not.
RELU6, HARDSWISH = tl.constexpr(7), tl.constexpr(8)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    """activation(x) in fp32; a NaN passes."""
    y = activate(x, ACTIVATION)
    if ACTIVATION == RELU6:
        y = tl.where(x <= 0, 0.0, tl.where(x >= 6, 6.0, x))
    elif ACTIVATION == HARDSWISH:
        # x * 0 is NaN where x is -inf, as in torch
        y = x * tl.where(x <= -3, 0.0, tl.where(x >= 3, 6.0, x + 3)) * 0.16666666666666666
    return y


@triton.jit
def _of_channels(values_ptr, channel, mask, without: tl.constexpr):
    """In fp32; `without` where there are no values."""
    if values_ptr is None:
        return tl.zeros_like(channel).to(tl.float32) + without
    return tl.load(values_ptr + channel, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "C"])
def conv2d_epilogue_kernel(
    y_ptr, bias_ptr, scale_ptr, residual_ptr, rows, columns, C,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr, INDEX_64: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program m * ceil(columns / BLOCK_N) + n: tile (m, n)."""
    program = tl.program_id(0).to(tl.int64) if INDEX_64 else tl.program_id(0)
    blocks_n = tl.cdiv(columns, BLOCK_N)
    row = program // blocks_n * BLOCK_M + tl.arange(0, BLOCK_M)
    column = program % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    y = tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if CHANNELS_LAST:
        scale = _of_channels(scale_ptr, column, column < columns, 1.0)[None, :]
        bias = _of_channels(bias_ptr, column, column < columns, 0.0)[None, :]
    else:
        scale = _of_channels(scale_ptr, row % C, row < rows, 1.0)[:, None]
        bias = _of_channels(bias_ptr, row % C, row < rows, 0.0)[:, None]
    y = y * scale + bias
    if residual_ptr is not None:
        y += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION != RELU:
        y = _activate(y, ACTIVATION)
    rounded = y.to(y_ptr.dtype.element_ty)
    if ACTIVATION == RELU:
        # what rounds to 0 is closed as well; NaN passes
        rounded = tl.where(rounded.to(tl.float32) <= 0, 0.0, rounded)
    tl.store(y_ptr + at, rounded, mask=mask)
