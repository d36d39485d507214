# output = relu(max_pool(conv) + bias) after somebody else's convolution, and the gradient of that convolution.
# One program: BLOCK elements in memory order, an element a lane, one writer each: the gradient gathers from the windows
# that cover its position instead of scattering from them.
# Saves for backward: the record, one byte a pooled element.

import triton
import triton.language as tl

from .triton_pixels import close, inside, split_pixel, take_maximum, window_gradient


@triton.jit
def _coordinates(element, C, height, width, CHANNELS_LAST: tl.constexpr):
    """Position in memory -> (image, channel, row, column)."""
    if CHANNELS_LAST:
        n, h, w = split_pixel(element // C, height, width)
        c = element % C
    else:
        plane, h, w = split_pixel(element, height, width)
        n, c = plane // C, plane % C
    return n, c, h, w


@triton.jit(do_not_specialize=["elements", "C", "CH", "CW", "OH", "OW"])
def bias_relu_maxpool_kernel(
    conv_ptr, bias_ptr, output_ptr, record_ptr,
    elements, C, CH, CW, OH, OW, stride_n, stride_c, stride_h, stride_w,
    POOL_SIZE: tl.constexpr, POOL_STRIDE: tl.constexpr, POOL_PADDING: tl.constexpr, POOL_DILATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INDEX_64: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """conv at its strides; output and record dense, channels last or first."""
    block = tl.program_id(0).to(tl.int64) if INDEX_64 else tl.program_id(0)
    element = block * BLOCK + tl.arange(0, BLOCK)
    mask = element < elements
    n, c, oh, ow = _coordinates(element, C, OH, OW, CHANNELS_LAST)

    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    offset = tl.full((BLOCK,), -1, tl.int32)
    for p in range(POOL_SIZE[0] * POOL_SIZE[1]):
        ch = oh * POOL_STRIDE[0] - POOL_PADDING[0] + p // POOL_SIZE[1] * POOL_DILATION[0]
        cw = ow * POOL_STRIDE[1] - POOL_PADDING[1] + p % POOL_SIZE[1] * POOL_DILATION[1]
        valid = mask & inside(ch, cw, CH, CW)
        offsets = n * stride_n + c * stride_c + ch * stride_h + cw * stride_w
        candidate = tl.load(conv_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
        best, offset = take_maximum(best, offset, candidate, p, valid)

    if bias_ptr is not None:
        best += tl.load(bias_ptr + c, mask=mask, other=0.0).to(tl.float32)
    value, record = close(best, offset, output_ptr.dtype.element_ty)
    tl.store(output_ptr + element, value, mask=mask)
    if record_ptr is not None:
        tl.store(record_ptr + element, record, mask=mask)


@triton.jit(do_not_specialize=["elements", "C", "CH", "CW", "OH", "OW"])
def bias_relu_maxpool_grad_kernel(
    grad_output_ptr, saved_ptr, grad_conv_ptr,
    elements, C, CH, CW, OH, OW, stride_n, stride_c, stride_h, stride_w,
    POOL_SIZE: tl.constexpr, POOL_STRIDE: tl.constexpr, POOL_PADDING: tl.constexpr, POOL_DILATION: tl.constexpr,
    POOLED: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX_64: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_output and saved at the same strides; grad_conv dense, channels last or first."""
    WINDOWS_H: tl.constexpr = (POOL_SIZE[0] - 1) * POOL_DILATION[0] // POOL_STRIDE[0] + 1
    WINDOWS_W: tl.constexpr = (POOL_SIZE[1] - 1) * POOL_DILATION[1] // POOL_STRIDE[1] + 1
    block = tl.program_id(0).to(tl.int64) if INDEX_64 else tl.program_id(0)
    element = block * BLOCK + tl.arange(0, BLOCK)
    mask = element < elements
    n, c, ch, cw = _coordinates(element, C, CH, CW, CHANNELS_LAST)
    h, w = ch + POOL_PADDING[0], cw + POOL_PADDING[1]
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(WINDOWS_H * WINDOWS_W):
        oh, ow = h // POOL_STRIDE[0] - i // WINDOWS_W, w // POOL_STRIDE[1] - i % WINDOWS_W
        total += window_gradient(
            grad_output_ptr, saved_ptr, n * stride_n + c * stride_c, h, w, oh, ow, mask, OH, OW, stride_h, stride_w,
            POOL_SIZE, POOL_STRIDE, POOL_DILATION, POOLED,
        ).to(tl.float32)  # fmt: skip
    tl.store(grad_conv_ptr + element, total.to(grad_conv_ptr.dtype.element_ty), mask=mask)
