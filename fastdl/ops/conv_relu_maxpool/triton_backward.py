# grad_input: implicit matrix product of the expanded gradient and the turned weight; BLOCK_M input pixels x BLOCK_N
# channels of one group a program. grad_weight and grad_bias: the pooled pixels split over programs, each sums its part
# of a [BLOCK_M output channels, BLOCK_N taps and channels] tile, and a second kernel adds the parts in order.
# The gradient of the convolution lives in registers only: read from grad_output and the record (or output) as needed.

import triton
import triton.language as tl

from .triton_pixels import inside, is_open, split_pixel, window_gradient


@triton.jit(do_not_specialize=["pixels", "H", "W", "CH", "CW", "OH", "OW"])
def conv_relu_maxpool_grad_input_kernel(
    grad_output_ptr, saved_ptr, weight_ptr, grad_input_ptr,
    pixels, H, W, CH, CW, OH, OW,
    stride_on, stride_oc, stride_oh, stride_ow, stride_xn, stride_xc, stride_xh, stride_xw,
    GROUPS: tl.constexpr, C_GROUP: tl.constexpr, C_OUT_GROUP: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    POOL_SIZE: tl.constexpr, POOL_STRIDE: tl.constexpr, POOL_PADDING: tl.constexpr, POOL_DILATION: tl.constexpr,
    POOLED: tl.constexpr, INPUT_PRECISION: tl.constexpr, INDEX_64: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """grad_output and saved at the same strides, weight [KH, KW, C_OUT_GROUP, C]; windows must not overlap."""
    COLUMN_BLOCKS: tl.constexpr = (C_GROUP + BLOCK_N - 1) // BLOCK_N
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    CHUNKS: tl.constexpr = (C_OUT_GROUP + BLOCK_K - 1) // BLOCK_K
    STEPS: tl.constexpr = (
        TAPS * CHUNKS if C_OUT_GROUP >= 16 else (TAPS * C_OUT_GROUP + BLOCK_K - 1) // BLOCK_K
    )
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
    column_mask = channel < C_GROUP
    column = group * C_GROUP + channel
    pixel = block * BLOCK_M + tl.arange(0, BLOCK_M)
    pixel_mask = pixel < pixels
    n, ih, iw = split_pixel(pixel, H, W)
    image_offset = n * stride_on + group * C_OUT_GROUP * stride_oc

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    last = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(STEPS):
        if C_OUT_GROUP >= 16:
            tap, channel_out = step // CHUNKS, step % CHUNKS * BLOCK_K + k_range
            row, k_mask = tap * C_OUT_GROUP + channel_out, channel_out < C_OUT_GROUP
        else:
            row = step * BLOCK_K + k_range
            tap, channel_out, k_mask = (
                (row // C_OUT_GROUP)[None, :],
                row % C_OUT_GROUP,
                row < TAPS * C_OUT_GROUP,
            )
        w_offsets = row[:, None] * (GROUPS * C_GROUP) + column[None, :]
        w_tile = tl.load(weight_ptr + w_offsets, mask=k_mask[:, None] & column_mask[None, :], other=0.0)
        # The convolution's position that reads this input pixel through this tap, if the stride hits it.
        h = (ih + PADDING[0])[:, None] - tap // KERNEL[1] * DILATION[0]
        w = (iw + PADDING[1])[:, None] - tap % KERNEL[1] * DILATION[1]
        ch, cw = h // STRIDE[0], w // STRIDE[1]
        mask = inside(ch, cw, CH, CW) & (ch * STRIDE[0] == h) & (cw * STRIDE[1] == w)
        g_tile = window_gradient(
            grad_output_ptr, saved_ptr, image_offset[:, None] + channel_out[None, :] * stride_oc,
            ch + POOL_PADDING[0], cw + POOL_PADDING[1],
            (ch + POOL_PADDING[0]) // POOL_STRIDE[0], (cw + POOL_PADDING[1]) // POOL_STRIDE[1],
            mask & pixel_mask[:, None] & k_mask[None, :], OH, OW, stride_oh, stride_ow,
            POOL_SIZE, POOL_STRIDE, POOL_DILATION, POOLED,
        )  # fmt: skip
        if g_tile.dtype == tl.float32 and INPUT_PRECISION == "ieee":
            # One chain of additions, of BLOCK_K: a block is added a step later.
            total += last
            last = tl.dot(g_tile, w_tile, input_precision=INPUT_PRECISION)
        else:
            total = tl.dot(g_tile, w_tile, total, input_precision=INPUT_PRECISION)
    total += last

    offsets = (n * stride_xn + ih * stride_xh + iw * stride_xw)[:, None] + column[None, :] * stride_xc
    value = total.to(grad_input_ptr.dtype.element_ty)
    tl.store(grad_input_ptr + offsets, value, mask=pixel_mask[:, None] & column_mask[None, :])


@triton.jit(do_not_specialize=["pixels", "pixels_per_part", "H", "W", "OH", "OW"])
def conv_relu_maxpool_grad_weight_kernel(
    grad_output_ptr, saved_ptr, x_ptr, weight_parts_ptr, bias_parts_ptr,
    pixels, pixels_per_part, H, W, OH, OW,
    stride_on, stride_oc, stride_oh, stride_ow, stride_xn, stride_xc, stride_xh, stride_xw,
    GROUPS: tl.constexpr, C_GROUP: tl.constexpr, C_OUT_GROUP: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    POOL_SIZE: tl.constexpr, POOL_STRIDE: tl.constexpr, POOL_PADDING: tl.constexpr, POOL_DILATION: tl.constexpr,
    POOLED: tl.constexpr, INPUT_PRECISION: tl.constexpr, INDEX_64: tl.constexpr,
    POSITIONS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """fp32 parts [part, C_out, C_GROUP, KH, KW] and [part, C_out]; null where not wanted. Pixels are pooled pixels."""
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    ROW_BLOCKS: tl.constexpr = (C_OUT_GROUP + BLOCK_M - 1) // BLOCK_M
    tile, part = tl.program_id(0), tl.program_id(1)
    group, row_block, column_block = (
        tile // ROW_BLOCKS % GROUPS,
        tile % ROW_BLOCKS,
        tile // (ROW_BLOCKS * GROUPS),
    )
    channel_out = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    k_range = tl.arange(0, BLOCK_K)
    column = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    if INDEX_64:
        part, group, channel_out, k_range, column = (
            part.to(tl.int64), group.to(tl.int64), channel_out.to(tl.int64), k_range.to(tl.int64), column.to(tl.int64),
        )  # fmt: skip
    row_mask, column_mask = channel_out < C_OUT_GROUP, column < TAPS * C_GROUP
    row = group * C_OUT_GROUP + channel_out
    tap, c = column // C_GROUP, column % C_GROUP
    tap_h, tap_w = tap // KERNEL[1] * DILATION[0] - PADDING[0], tap % KERNEL[1] * DILATION[1] - PADDING[1]

    weight_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    bias_sum = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    start = part * pixels_per_part
    for k in range(0, pixels_per_part, BLOCK_K):
        pixel = start + k + k_range
        pixel_mask = pixel < pixels
        n, oh, ow = split_pixel(pixel, OH, OW)
        offsets = row[:, None] * stride_oc + (n * stride_on + oh * stride_oh + ow * stride_ow)[None, :]
        mask = row_mask[:, None] & pixel_mask[None, :]
        grad = tl.load(grad_output_ptr + offsets, mask=mask, other=0.0)
        saved = tl.load(saved_ptr + offsets, mask=mask, other=0)
        if bias_parts_ptr is not None:
            open_anywhere = (
                saved.to(tl.int32) < POOL_SIZE[0] * POOL_SIZE[1] if POOLED else is_open(saved, 0, POOLED)
            )
            bias_sum += tl.where(open_anywhere, grad.to(tl.float32), 0.0)
        if weight_parts_ptr is not None:
            image_offset = (n * stride_xn)[:, None] + ((group * C_GROUP + c) * stride_xc)[None, :]
            for first in range(0, POOL_SIZE[0] * POOL_SIZE[1], POSITIONS):
                for p in tl.static_range(POSITIONS):
                    ch = (
                        oh * POOL_STRIDE[0] - POOL_PADDING[0] + (first + p) // POOL_SIZE[1] * POOL_DILATION[0]
                    )
                    cw = ow * POOL_STRIDE[1] - POOL_PADDING[1] + (first + p) % POOL_SIZE[1] * POOL_DILATION[1]
                    h, w = (
                        (ch * STRIDE[0])[:, None] + tap_h[None, :],
                        (cw * STRIDE[1])[:, None] + tap_w[None, :],
                    )
                    x_mask = pixel_mask[:, None] & column_mask[None, :] & inside(h, w, H, W)
                    x_tile = tl.load(
                        x_ptr + image_offset + h * stride_xh + w * stride_xw, mask=x_mask, other=0.0
                    )
                    g_tile = tl.where(is_open(saved, first + p, POOLED), grad, 0.0)
                    weight_sum = tl.dot(g_tile, x_tile, weight_sum, input_precision=INPUT_PRECISION)

    if weight_parts_ptr is not None:
        offsets = (part * (GROUPS * C_OUT_GROUP) + row)[:, None] * (TAPS * C_GROUP) + (c * TAPS + tap)[
            None, :
        ]
        tl.store(weight_parts_ptr + offsets, weight_sum, mask=row_mask[:, None] & column_mask[None, :])
    if bias_parts_ptr is not None:  # noqa: SIM102, the one is known when compiling, the other is not
        if column_block == 0:
            tl.store(bias_parts_ptr + part * (GROUPS * C_OUT_GROUP) + row, tl.sum(bias_sum, 1), mask=row_mask)


@triton.jit(do_not_specialize=["parts", "elements"])
def sum_parts_kernel(parts_ptr, sum_ptr, parts, elements, BLOCK: tl.constexpr):
    """[parts, elements] fp32 -> [elements], added in order: the same bits in every run."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = element < elements
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(parts):
        total += tl.load(parts_ptr + element, mask=mask, other=0.0)
        parts_ptr += elements
    tl.store(sum_ptr + element, total.to(sum_ptr.dtype.element_ty), mask=mask)
