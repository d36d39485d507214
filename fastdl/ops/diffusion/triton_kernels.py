# The diffusion step, its backward, and noise: the arithmetic of reference.py, with the noise of normal.py.
# One program: BLOCK elements of one sample in memory order, from a multiple of four on, four for each Philox counter.
# Saves nothing for backward.

import triton
import triton.language as tl


@triton.jit
def _log_of_uniform(u):
    shifted = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    f = ((shifted & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = f * 7.0376836292e-2 - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    square = f * f
    exponent = (shifted >> 23).to(tl.float32)
    tail = exponent * -2.12194440e-4 + f * square * p - 0.5 * square
    return exponent * 0.693359375 + (f + tail)


@triton.jit
def _box_muller(first, second):
    u = first.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    radius = tl.sqrt(-2.0 * _log_of_uniform(u))
    quarter = (second + 0x20000000) >> 30
    x = (second - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-9
    z = x * x
    s = (z * -1.9515295891e-4 + 8.3321608736e-3) * z - 1.6666654611e-1
    s = x * z * s + x
    c = (z * 2.443315711809948e-5 - 1.388731625493765e-3) * z + 4.166664568298827e-2
    c = z * z * c + (1.0 - 0.5 * z)
    odd = (quarter & 1) != 0
    across, along = tl.where(odd, s, c), tl.where(odd, c, s)
    cosine = tl.where(((quarter + 1) & 2) != 0, -across, across)
    sine = tl.where((quarter & 2) != 0, -along, along)
    return radius * cosine, radius * sine


@triton.jit
def _normals(first, seed_ptr, BLOCK: tl.constexpr):
    """The deviates of elements first .. first + BLOCK - 1; first is a multiple of 4."""
    block = first // 4 + tl.arange(0, BLOCK // 4)
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    offset = tl.load(seed_ptr + 1)
    zero = low * 0
    a, b, c, d = tl.philox(
        tl.load(seed_ptr), low, high, zero + offset.to(tl.uint32), zero + (offset >> 32).to(tl.uint32)
    )
    n_0, n_1 = _box_muller(a, b)
    n_2, n_3 = _box_muller(c, d)
    return tl.reshape(tl.join(tl.join(n_0, n_2), tl.join(n_1, n_3)), (BLOCK,))


@triton.jit
def _elements(size, BLOCK: tl.constexpr):
    """(sample, first element, elements, which of them are the sample's)."""
    sample = tl.program_id(1).to(tl.int64)
    begin = sample * size
    first = begin // 4 * 4 + tl.program_id(0).to(tl.int64) * BLOCK
    element = first + tl.arange(0, BLOCK)
    return sample, first, element, (element >= begin) & (element < begin + size)


@triton.jit
def _coefficients(table_ptr, rows_ptr, sample, row, table_rows, ROW_STRIDE: tl.constexpr):
    """(address of the sample's row, whether it is one): outside the table a sample becomes NaN."""
    if rows_ptr is not None:
        row = tl.load(rows_ptr + sample * ROW_STRIDE)
    inside = (row >= 0) & (row < table_rows)
    return table_ptr + tl.where(inside, row, 0) * 9, inside


@triton.jit
def _coefficient(c_ptr, inside, column: tl.constexpr):
    return tl.where(inside, tl.load(c_ptr + column), float("nan"))


@triton.jit
def _load(ptr, element, mask):
    return tl.load(ptr + element, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_model(model_ptr, half, guidance, element, mask, GUIDED: tl.constexpr):
    """The model's output, guided; 0 without one. half: elements before its conditional half."""
    m = tl.zeros(element.shape, tl.float32)
    if model_ptr is not None:
        m = _load(model_ptr, element, mask)
        if GUIDED:
            m += guidance * (_load(model_ptr + half, element, mask) - m)
    return m


@triton.jit
def _load_noise(noise_ptr, seed_ptr, first, element, mask, BLOCK: tl.constexpr):
    n = tl.zeros(element.shape, tl.float32)
    if noise_ptr is not None:
        n = _load(noise_ptr, element, mask)
    elif seed_ptr is not None:
        n = _normals(first, seed_ptr, BLOCK)
    return n


@triton.jit
def _raw_x_0(c, inside, x, m, n):
    return _coefficient(c, inside, 0) * x + _coefficient(c, inside, 1) * m + _coefficient(c, inside, 2) * n


@triton.jit
def _clamp(v, limit):
    return tl.where(v < -limit, -limit, tl.where(v > limit, limit, v))


@triton.jit
def _store_step(c, inside, x, m, n, x_0, history_ptr, prev_ptr, x0_ptr, element, mask):
    if x0_ptr is not None:
        tl.store(x0_ptr + element, x_0.to(x0_ptr.dtype.element_ty), mask=mask)
    if prev_ptr is not None:
        total = _coefficient(c, inside, 3) * x + _coefficient(c, inside, 5) * m
        total += _coefficient(c, inside, 7) * n + _coefficient(c, inside, 4) * x_0
        if history_ptr is not None:
            total += _coefficient(c, inside, 6) * _load(history_ptr, element, mask)
        tl.store(prev_ptr + element, total.to(prev_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["size", "half", "row", "table_rows"])
def diffusion_step_kernel(
    sample_ptr, model_ptr, history_ptr, noise_ptr, seed_ptr, rows_ptr, table_ptr, prev_ptr, x0_ptr, value_ptr,
    size, half, row, table_rows, guidance, limit,
    ROW_STRIDE: tl.constexpr, GUIDED: tl.constexpr, CLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, first, element, mask = _elements(size, BLOCK)
    c, inside = _coefficients(table_ptr, rows_ptr, sample, row, table_rows, ROW_STRIDE)
    x = _load(sample_ptr, element, mask)
    m = _load_model(model_ptr, half, guidance, element, mask, GUIDED)
    n = _load_noise(noise_ptr, seed_ptr, first, element, mask, BLOCK)
    x_0 = _raw_x_0(c, inside, x, m, n)
    if CLIP:
        x_0 = _clamp(x_0, limit)
    _store_step(c, inside, x, m, n, x_0, history_ptr, prev_ptr, x0_ptr, element, mask)
    if value_ptr is not None:
        once = (tl.program_id(0) == 0) & ((sample == 0) | (ROW_STRIDE == 1))
        tl.store(value_ptr + sample * ROW_STRIDE, _coefficient(c, inside, 8), mask=once)


@triton.jit(do_not_specialize=["size", "half", "row", "table_rows"])
def diffusion_step_backward_kernel(
    grad_prev_ptr, grad_x0_ptr, sample_ptr, model_ptr, rows_ptr, table_ptr,
    grad_sample_ptr, grad_model_ptr, grad_history_ptr, grad_noise_ptr,
    size, half, row, table_rows, guidance, limit,
    ROW_STRIDE: tl.constexpr, GUIDED: tl.constexpr, CLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sample and the model's output are read where x_0 was clipped."""
    sample, first, element, mask = _elements(size, BLOCK)
    c, inside = _coefficients(table_ptr, rows_ptr, sample, row, table_rows, ROW_STRIDE)
    g_prev = tl.zeros((BLOCK,), tl.float32)
    g_x0 = tl.zeros((BLOCK,), tl.float32)
    if grad_prev_ptr is not None:
        g_prev = _load(grad_prev_ptr, element, mask)
    if grad_x0_ptr is not None:
        g_x0 = _load(grad_x0_ptr, element, mask)
    g_x0 += _coefficient(c, inside, 4) * g_prev
    if CLIP:
        m = _load_model(model_ptr, half, guidance, element, mask, GUIDED)
        x_0 = _coefficient(c, inside, 0) * _load(sample_ptr, element, mask) + _coefficient(c, inside, 1) * m
        g_x0 = tl.where((x_0 <= limit) & (x_0 >= -limit), g_x0, 0.0)
    if grad_sample_ptr is not None:
        g = _coefficient(c, inside, 3) * g_prev + _coefficient(c, inside, 0) * g_x0
        tl.store(grad_sample_ptr + element, g.to(grad_sample_ptr.dtype.element_ty), mask=mask)
    if grad_model_ptr is not None:
        g = _coefficient(c, inside, 5) * g_prev + _coefficient(c, inside, 1) * g_x0
        if GUIDED:
            to = grad_model_ptr.dtype.element_ty
            tl.store(grad_model_ptr + half + element, (guidance * g).to(to), mask=mask)
            g = (1.0 - guidance) * g
        tl.store(grad_model_ptr + element, g.to(grad_model_ptr.dtype.element_ty), mask=mask)
    if grad_history_ptr is not None:
        g = _coefficient(c, inside, 6) * g_prev
        tl.store(grad_history_ptr + element, g.to(grad_history_ptr.dtype.element_ty), mask=mask)
    if grad_noise_ptr is not None:
        g = _coefficient(c, inside, 7) * g_prev + _coefficient(c, inside, 2) * g_x0
        tl.store(grad_noise_ptr + element, g.to(grad_noise_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["size"])
def normal_noise_kernel(seed_ptr, output_ptr, size, BLOCK: tl.constexpr):
    """`size` deviates in memory order."""
    _, first, element, mask = _elements(size, BLOCK)
    n = _normals(first, seed_ptr, BLOCK)
    tl.store(output_ptr + element, n.to(output_ptr.dtype.element_ty), mask=mask)
