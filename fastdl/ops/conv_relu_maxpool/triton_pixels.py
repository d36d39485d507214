"""What the Triton kernels of this family share: pixel indices, the record, the gradient expanded from it."""

import triton
import triton.language as tl


@triton.jit
def split_pixel(pixel, height, width):
    """Flat index over [image, height, width] -> (image, row, column)."""
    rest = pixel // width
    return rest // height, rest % height, pixel % width


@triton.jit
def inside(h, w, height, width):
    return (h >= 0) & (h < height) & (w >= 0) & (w < width)


@triton.jit
def take_maximum(best, offset, candidate, p, valid):
    """The first maximum wins, and the last NaN; offset is -1 until a position inside the map was seen."""
    better = valid & ((candidate > best) | (candidate != candidate) | (offset < 0))
    return tl.where(better, candidate, best), tl.where(better, p, offset)


@triton.jit
def close(value, offset, dtype: tl.constexpr):
    """(relu(value), record) in the types they are stored in; what rounds to 0 is closed as well."""
    rounded = value.to(dtype)
    closed = rounded.to(tl.float32) <= 0
    return tl.where(closed, 0.0, rounded), tl.where(closed, 255, offset).to(tl.uint8)


@triton.jit
def is_open(saved, offset, POOLED: tl.constexpr):
    """Whether the gradient passes: the record names window position `offset`; without a pool, not output <= 0."""
    return saved.to(tl.int32) == offset if POOLED else (saved.to(tl.float32) <= 0) == 0


@triton.jit
def window_gradient(
    grad_output_ptr, saved_ptr, image_and_channel, h, w, oh, ow, mask, OH, OW, stride_h, stride_w,
    POOL_SIZE: tl.constexpr, POOL_STRIDE: tl.constexpr, POOL_DILATION: tl.constexpr, POOLED: tl.constexpr,
):  # fmt: skip
    """What window (oh, ow) sends to position (h, w) of the pool-padded convolution; 0 where it sends nothing."""
    below, right = h - oh * POOL_STRIDE[0], w - ow * POOL_STRIDE[1]
    kh, kw = below // POOL_DILATION[0], right // POOL_DILATION[1]
    mask = mask & inside(oh, ow, OH, OW) & inside(kh, kw, POOL_SIZE[0], POOL_SIZE[1])
    mask = mask & (kh * POOL_DILATION[0] == below) & (kw * POOL_DILATION[1] == right)
    offsets = image_and_channel + oh * stride_h + ow * stride_w
    grad = tl.load(grad_output_ptr + offsets, mask=mask, other=0.0)
    saved = tl.load(saved_ptr + offsets, mask=mask, other=0)
    return tl.where(is_open(saved, kh * POOL_SIZE[1] + kw, POOLED), grad, 0.0)
