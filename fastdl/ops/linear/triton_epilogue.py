"""What the Triton kernels do to a tile after its product, and back: activation, derivative, dropout."""

import triton
import triton.language as tl

# The codes of activations.py.
RELU, GELU, GELU_TANH, SILU, TANH, SIGMOID = (tl.constexpr(code) for code in range(1, 7))


@triton.jit
def _tanh(x):
    # exp of a negative argument alone: nothing overflows; near 0 the series, since 1 - e loses digits there
    magnitude = tl.abs(x)
    e = tl.exp(-2 * magnitude)
    large = (1 - e) / (1 + e)
    square = x * x
    tail = -0.333332807 + square * (0.133314416 + square * (-0.0537397116 + square * 0.0206390787))
    small = magnitude + magnitude * square * tail
    value = tl.where(magnitude < 0.3, small, large)
    return tl.where(x < 0, -value, value)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """activation(x) in fp32; a NaN passes."""
    y = x
    if ACTIVATION == RELU:
        y = tl.where(x <= 0, 0.0, x)
    elif ACTIVATION == GELU:
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == GELU_TANH:
        y = 0.5 * x * (1 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == SILU:
        y = x * tl.sigmoid(x)
    elif ACTIVATION == TANH:
        y = _tanh(x)
    elif ACTIVATION == SIGMOID:
        y = tl.sigmoid(x)
    return y


@triton.jit
def activate_backward(grad, saved, ACTIVATION: tl.constexpr):
    """grad * activation'; `saved` is the output, or for gelu and silu its input."""
    g = grad
    if ACTIVATION == RELU:
        g = tl.where(saved <= 0, 0.0, grad)
    elif ACTIVATION == GELU:
        density = 0.3989422804014327 * tl.exp(-0.5 * saved * saved)
        g = grad * (0.5 * (1 + tl.erf(saved * 0.7071067811865476)) + saved * density)
    elif ACTIVATION == GELU_TANH:
        square = saved * saved
        t = _tanh(0.7978845608028654 * (saved + 0.044715 * square * saved))
        slope = 0.7978845608028654 * (1 + 3 * 0.044715 * square)
        g = grad * (0.5 * (1 + t) + 0.5 * saved * (1 - t * t) * slope)
    elif ACTIVATION == SILU:
        s = tl.sigmoid(saved)
        g = grad * (s * (1 + saved * (1 - s)))
    elif ACTIVATION == TANH:
        g = grad * (1 - saved * saved)
    elif ACTIVATION == SIGMOID:
        g = grad * (saved * (1 - saved))
    return g


@triton.jit
def keep(seed_ptr, index, threshold):
    """Whether dropout keeps element `index` (int64): word index % 4 of Philox at counter index // 4."""
    seed = tl.load(seed_ptr)
    group = index // 4
    low, high = (group & 0xFFFFFFFF).to(tl.uint32), (group >> 32).to(tl.uint32)
    nothing = low & 0
    a, b, c, d = tl.philox(seed, low, high, nothing, nothing)
    which = index % 4
    word = tl.where(which == 0, a, tl.where(which == 1, b, tl.where(which == 2, c, d)))
    return word.to(tl.uint32).to(tl.int64) >= threshold
