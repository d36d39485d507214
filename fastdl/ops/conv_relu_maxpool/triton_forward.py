# output = relu(max over the window of conv(x, weight) + bias), the convolution as an implicit matrix product.
# One program: BLOCK_M pooled pixels x BLOCK_N channels of one group. POSITIONS window positions at a time have one
# sum each and share every tile of the weight; a 2x2 window is taken at once, in registers.
# Saves for backward: the record, one byte a pooled element.

import triton
import triton.language as tl

from .triton_pixels import close, inside, split_pixel, take_maximum


@triton.jit
def _convolve(
    x_ptr, weight_ptr, image_offset, top, left, pixel_mask, column, column_mask, k_range,
    H, W, stride_xc, stride_xh, stride_xw,
    C_GROUP: tl.constexpr, C_OUT: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    POOL_SIZE: tl.constexpr, POOL_DILATION: tl.constexpr, POSITIONS: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """POSITIONS tiles [BLOCK_M, BLOCK_N] of the convolution, in fp32; (top, left) is the first one's input corner."""
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    CHUNKS: tl.constexpr = (C_GROUP + BLOCK_K - 1) // BLOCK_K
    STEPS: tl.constexpr = TAPS * CHUNKS if C_GROUP >= 16 else (TAPS * C_GROUP + BLOCK_K - 1) // BLOCK_K
    sums = (tl.zeros((BLOCK_M, BLOCK_N), tl.float32),) * POSITIONS
    for step in range(STEPS):
        if C_GROUP >= 16:
            tap, c = step // CHUNKS, step % CHUNKS * BLOCK_K + k_range
            row, k_mask = tap * C_GROUP + c, c < C_GROUP
        else:
            row = step * BLOCK_K + k_range
            tap, c, k_mask = (row // C_GROUP)[None, :], row % C_GROUP, row < TAPS * C_GROUP
        w_offsets = row[:, None] * C_OUT + column[None, :]
        w_tile = tl.load(weight_ptr + w_offsets, mask=k_mask[:, None] & column_mask[None, :], other=0.0)
        pixel_and_channel = image_offset[:, None] + c[None, :] * stride_xc
        mask = pixel_mask[:, None] & k_mask[None, :]
        added = ()
        for p in tl.static_range(POSITIONS):
            h = (
                top[:, None]
                + tap // KERNEL[1] * DILATION[0]
                + p // POOL_SIZE[1] * POOL_DILATION[0] * STRIDE[0]
            )
            w = (
                left[:, None]
                + tap % KERNEL[1] * DILATION[1]
                + p % POOL_SIZE[1] * POOL_DILATION[1] * STRIDE[1]
            )
            offsets = pixel_and_channel + h * stride_xh + w * stride_xw
            x_tile = tl.load(x_ptr + offsets, mask=mask & inside(h, w, H, W), other=0.0)
            added = added + (tl.dot(x_tile, w_tile, sums[p], input_precision=INPUT_PRECISION),)
        sums = added
    return sums


@triton.jit(do_not_specialize=["pixels", "H", "W", "CH", "CW", "OH", "OW"])
def conv_relu_maxpool_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, output_ptr, record_ptr,
    pixels, H, W, CH, CW, OH, OW,
    stride_xn, stride_xc, stride_xh, stride_xw, stride_on, stride_oc, stride_oh, stride_ow,
    GROUPS: tl.constexpr, C_GROUP: tl.constexpr, C_OUT_GROUP: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    POOL_SIZE: tl.constexpr, POOL_STRIDE: tl.constexpr, POOL_PADDING: tl.constexpr, POOL_DILATION: tl.constexpr,
    POSITIONS: tl.constexpr, INPUT_PRECISION: tl.constexpr, INDEX_64: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x at its strides, weight [KH, KW, C_GROUP, C_out], output and record at the same strides."""
    COLUMN_BLOCKS: tl.constexpr = (C_OUT_GROUP + BLOCK_N - 1) // BLOCK_N
    block, group_block = (
        tl.program_id(0) // (COLUMN_BLOCKS * GROUPS),
        tl.program_id(0) % (COLUMN_BLOCKS * GROUPS),
    )
    group = group_block // COLUMN_BLOCKS
    channel = group_block % COLUMN_BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    k_range = tl.arange(0, BLOCK_K)
    if INDEX_64:
        block, group, channel, k_range = (
            block.to(tl.int64), group.to(tl.int64), channel.to(tl.int64), k_range.to(tl.int64),
        )  # fmt: skip
    column_mask = channel < C_OUT_GROUP
    column = group * C_OUT_GROUP + channel
    pixel = block * BLOCK_M + tl.arange(0, BLOCK_M)
    pixel_mask = pixel < pixels
    n, oh, ow = split_pixel(pixel, OH, OW)
    image_offset = n * stride_xn + group * C_GROUP * stride_xc

    best = tl.full((BLOCK_M, BLOCK_N), float("-inf"), tl.float32)
    offset = tl.full((BLOCK_M, BLOCK_N), -1, tl.int32)
    for first in range(0, POOL_SIZE[0] * POOL_SIZE[1], POSITIONS):
        ch = oh * POOL_STRIDE[0] - POOL_PADDING[0] + first // POOL_SIZE[1] * POOL_DILATION[0]
        cw = ow * POOL_STRIDE[1] - POOL_PADDING[1] + first % POOL_SIZE[1] * POOL_DILATION[1]
        sums = _convolve(
            x_ptr, weight_ptr, image_offset, ch * STRIDE[0] - PADDING[0], cw * STRIDE[1] - PADDING[1],
            pixel_mask, column, column_mask, k_range, H, W, stride_xc, stride_xh, stride_xw,
            C_GROUP, GROUPS * C_OUT_GROUP, KERNEL, STRIDE, DILATION, POOL_SIZE, POOL_DILATION, POSITIONS,
            INPUT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        for p in tl.static_range(POSITIONS):
            h, w = ch + p // POOL_SIZE[1] * POOL_DILATION[0], cw + p % POOL_SIZE[1] * POOL_DILATION[1]
            best, offset = take_maximum(best, offset, sums[p], first + p, inside(h, w, CH, CW)[:, None])

    if bias_ptr is not None:
        best += tl.load(bias_ptr + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    value, record = close(best, offset, output_ptr.dtype.element_ty)
    offsets = (n * stride_on + oh * stride_oh + ow * stride_ow)[:, None] + column[None, :] * stride_oc
    mask = pixel_mask[:, None] & column_mask[None, :]
    tl.store(output_ptr + offsets, value, mask=mask)
    if record_ptr is not None:
        tl.store(record_ptr + offsets, record, mask=mask)
