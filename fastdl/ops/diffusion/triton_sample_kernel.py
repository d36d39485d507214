# The diffusion step with what needs a whole sample first: the rescale of guidance, and the threshold.
# One program: one sample, BLOCK elements at a time, in several passes: means, squared deviations, the digits of the
# quantile, its successor, the elements. Saves nothing for backward.

import triton
import triton.language as tl

from .triton_kernels import (
    _clamp,
    _coefficient,
    _coefficients,
    _load,
    _load_model,
    _load_noise,
    _raw_x_0,
    _store_step,
)

# The bits of infinity; those of a NaN are above.
INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def _elements_from(sample, size, start, BLOCK: tl.constexpr):
    """(first element, elements, which of them are the sample's)."""
    begin = sample * size
    first = begin // 4 * 4 + start
    element = first + tl.arange(0, BLOCK)
    return first, element, (element >= begin) & (element < begin + size)


@triton.jit
def _rescale(model_ptr, sample, size, half, guidance, rescale, BLOCK: tl.constexpr):
    """phi std(c) / std(m) + 1 - phi; the ratio is 1 where std(m) is 0. NaN stays."""
    mean_c, mean_m = 0.0, 0.0
    squares_c, squares_m = 0.0, 0.0
    for squared in tl.static_range(2):
        sum_c, sum_m = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for start in range(0, size + 3, BLOCK):
            _, element, mask = _elements_from(sample, size, start, BLOCK)
            c = tl.where(mask, _load(model_ptr + half, element, mask) - mean_c, 0.0)
            m = tl.where(mask, _load_model(model_ptr, half, guidance, element, mask, True) - mean_m, 0.0)
            if squared:
                sum_c += c * c
                sum_m += m * m
            else:
                sum_c += c
                sum_m += m
        if squared:
            squares_c, squares_m = tl.sum(sum_c), tl.sum(sum_m)
        else:
            mean_c, mean_m = tl.sum(sum_c) / size, tl.sum(sum_m) / size
    ratio = tl.sqrt(squares_c / tl.where(squares_m == 0, 1.0, squares_m))
    ratio = tl.where((squares_m == 0) | (size < 2), 1.0, ratio)
    return rescale * ratio + (1.0 - rescale)


@triton.jit
def _inputs(
    sample_ptr, model_ptr, noise_ptr, seed_ptr, half, guidance, scale, with_noise, first, element, mask,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x, the scaled output of the model and the noise."""
    n = tl.zeros((BLOCK,), tl.float32)
    if with_noise:
        n = _load_noise(noise_ptr, seed_ptr, first, element, mask, BLOCK)
    m = scale * _load_model(model_ptr, half, guidance, element, mask, GUIDED)
    return _load(sample_ptr, element, mask), m, n


@triton.jit
def _magnitude(c, inside, x, m, n):
    """The bits of |x_0|: floats that are not negative are ordered as their bits."""
    return tl.abs(_raw_x_0(c, inside, x, m, n)).to(tl.int32, bitcast=True)


@triton.jit(do_not_specialize=["size", "half", "row", "table_rows", "low"])
def diffusion_step_sample_kernel(
    sample_ptr, model_ptr, history_ptr, noise_ptr, seed_ptr, rows_ptr, table_ptr, prev_ptr, x0_ptr, value_ptr,
    size, half, row, table_rows, guidance, rescale, limit, low, fraction,
    ROW_STRIDE: tl.constexpr, GUIDED: tl.constexpr, RESCALED: tl.constexpr, CLIP: tl.constexpr,
    THRESHOLD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The quantile lies `fraction` of the way from the `low`-th magnitude to the next."""
    sample = tl.program_id(0).to(tl.int64)
    c, inside = _coefficients(table_ptr, rows_ptr, sample, row, table_rows, ROW_STRIDE)
    scale = 1.0
    if RESCALED:
        scale = _rescale(model_ptr, sample, size, half, guidance, rescale, BLOCK)
    divide = 1.0
    if THRESHOLD:
        noise_in_x0 = _coefficient(c, inside, 2) != 0
        bins = tl.arange(0, 256)
        wanted = tl.sum(bins) * 0
        known, rank, equal = wanted, wanted + low, wanted  # known: which bits of it are found
        # Eight bits of the wanted magnitude at a time, from the highest on: how often does each digit occur?
        for shift in range(24, -1, -8):
            counts = tl.zeros((256,), tl.int32)
            for start in range(0, size + 3, BLOCK):
                first, element, mask = _elements_from(sample, size, start, BLOCK)
                x, m, n = _inputs(
                    sample_ptr, model_ptr, noise_ptr, seed_ptr, half, guidance, scale, noise_in_x0, first, element,
                    mask, GUIDED, BLOCK,
                )  # fmt: skip
                bits = _magnitude(c, inside, x, m, n)
                counts += tl.histogram((bits >> shift) & 255, 256, mask=mask & ((bits & known) == wanted))
            up_to = tl.cumsum(counts, 0)
            here = (up_to - counts <= rank) & (rank < up_to)
            wanted |= tl.sum(tl.where(here, bins, 0)) << shift
            known = -(1 << shift)
            equal = tl.sum(tl.where(here, counts, 0))
            rank -= tl.sum(tl.where(here, up_to - counts, 0))
        # The next in order, and the largest of all.
        following, largest = wanted * 0 + INFINITY, wanted
        for start in range(0, size + 3, BLOCK):
            first, element, mask = _elements_from(sample, size, start, BLOCK)
            x, m, n = _inputs(
                sample_ptr, model_ptr, noise_ptr, seed_ptr, half, guidance, scale, noise_in_x0, first, element,
                mask, GUIDED, BLOCK,
            )  # fmt: skip
            bits = _magnitude(c, inside, x, m, n)
            following = tl.minimum(following, tl.min(tl.where(mask & (bits > wanted), bits, INFINITY)))
            largest = tl.maximum(largest, tl.max(tl.where(mask, bits, 0)))
        at_low = wanted.to(tl.float32, bitcast=True)
        last = (rank + 1 < equal) | (low + 1 >= size)
        at_next = tl.where(last, at_low, following.to(tl.float32, bitcast=True))
        s = at_low + (at_next - at_low) * fraction
        s = tl.where(s < 1.0, 1.0, tl.where(s > limit, tl.maximum(limit, 1.0), s))
        limit = tl.where(largest > INFINITY, float("nan"), s)
        divide = limit
    for start in range(0, size + 3, BLOCK):
        first, element, mask = _elements_from(sample, size, start, BLOCK)
        x, m, n = _inputs(
            sample_ptr, model_ptr, noise_ptr, seed_ptr, half, guidance, scale, True, first, element, mask,
            GUIDED, BLOCK,
        )  # fmt: skip
        x_0 = _raw_x_0(c, inside, x, m, n)
        if CLIP or THRESHOLD:
            x_0 = _clamp(x_0, limit) / divide
        _store_step(c, inside, x, m, n, x_0, history_ptr, prev_ptr, x0_ptr, element, mask)
    if value_ptr is not None:
        own = (sample == 0) | (ROW_STRIDE == 1)
        tl.store(value_ptr + sample * ROW_STRIDE, _coefficient(c, inside, 8), mask=own)
