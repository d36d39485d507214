# Tiles of scores, from rows of q and k: softcap, bias, ALiBi, mask, causality, window, dropout.
# One program: BLOCK_M queries and BLOCK_N keys of one head.
# Saves nothing for backward, which computes the scores again.

import triton
import triton.language as tl


@triton.jit
def sequence(starts_ptr, b, L):
    """(first row, rows) of sequence b, within [0, L); dense: 0 and L."""
    first, rows = L * 0, L
    if starts_ptr is not None:
        begin, end = tl.load(starts_ptr + b).to(tl.int64), tl.load(starts_ptr + b + 1).to(tl.int64)
        begin, end = tl.minimum(tl.maximum(begin, 0), L), tl.minimum(tl.maximum(end, 0), L)
        first, rows = begin.to(tl.int32), tl.maximum(end - begin, 0).to(tl.int32)
    return first, rows


@triton.jit
def rows_at(ptr, b, h, first, stride_b, stride_h, stride_l):
    """Where row `first` of sequence b and head h lies."""
    return ptr + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_h + first.to(tl.int64) * stride_l


@triton.jit
def load_rows(ptr, stride, rows, L, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D]; rows from L on and columns from D on are 0."""
    d = tl.arange(0, BLOCK_D)
    inside = rows[:, None] < L
    if D != BLOCK_D:
        inside &= d[None, :] < D
    return tl.load(ptr + rows[:, None].to(tl.int64) * stride + d[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(ptr, stride, rows, L, values, D: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    inside = rows[:, None] < L
    if D != BLOCK_D:
        inside &= d[None, :] < D
    where = ptr + rows[:, None].to(tl.int64) * stride + d[None, :]
    tl.store(where, values.to(ptr.dtype.element_ty), mask=inside)


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
def scores(
    q, k, i, j, L_q, L_k, shift, left, right, scale, softcap, slope,
    mask_ptr, stride_mq, stride_mk, bias_ptr, stride_bq, stride_bk,
    CAPPED: tl.constexpr, ALIBI: tl.constexpr, RANGED: tl.constexpr,
):  # fmt: skip
    """(scores, -inf where the key is hidden; tanh of the softcap). left, right: how far a query sees."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    slant = s
    if CAPPED:
        slant = tanh(s / softcap)
        s = softcap * slant
    inside = (i[:, None] < L_q) & (j[None, :] < L_k)
    row, column = i[:, None].to(tl.int64), j[None, :].to(tl.int64)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + row * stride_bq + column * stride_bk, mask=inside, other=0.0)
        s += bias.to(tl.float32)
    seen = j[None, :] < L_k
    distance = i[:, None] + shift - j[None, :]
    if ALIBI:
        s -= slope * tl.abs(distance).to(tl.float32)
    if RANGED:
        seen &= (distance <= left) & (distance >= -right)
    if mask_ptr is not None:
        seen &= tl.load(mask_ptr + row * stride_mq + column * stride_mk, mask=inside, other=0) != 0
    return tl.where(seen, s, float("-inf")), slant


@triton.jit
def kept(seed_ptr, head, i, first, threshold, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_M, BLOCK_N] bool: the weights of keys first .. first + BLOCK_N that dropout keeps (dropout.py).

    first is a multiple of 4; threshold: of the words, less 2^31, so that it is an int32.
    """
    zero = tl.zeros((BLOCK_M, BLOCK_N // 4), tl.int32)
    quad = zero + (first // 4 + tl.arange(0, BLOCK_N // 4))[None, :]
    row = zero + i[:, None]
    a, b, c, d = tl.philox(
        tl.load(seed_ptr),
        quad.to(tl.uint32, bitcast=True),
        row.to(tl.uint32, bitcast=True),
        (zero + head).to(tl.uint32, bitcast=True),
        zero.to(tl.uint32, bitcast=True),
    )
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (BLOCK_M, BLOCK_N))
    return (words.to(tl.int32, bitcast=True) ^ -2147483648) >= threshold


@triton.jit
def seen_keys(i, count, shift, L_k, left, right, BLOCK_N: tl.constexpr, RANGED: tl.constexpr):
    """(first, end) of the keys that queries i .. i + count see; first is a multiple of BLOCK_N."""
    first, end = L_k * 0, L_k
    if RANGED:
        first = tl.minimum(tl.maximum(i + shift - left, 0), L_k) // BLOCK_N * BLOCK_N
        end = tl.minimum(i + count + shift + right, L_k)
    return first, end


@triton.jit
def seeing_queries(
    j, shift, L_q, left, right, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, RANGED: tl.constexpr
):
    """(first, end) of the queries that see keys j .. j + BLOCK_N; first is a multiple of BLOCK_M."""
    first, end = L_q * 0, L_q
    if RANGED:
        first = tl.minimum(tl.maximum(j - shift - right, 0), L_q) // BLOCK_M * BLOCK_M
        end = tl.minimum(j + BLOCK_N - shift + left, L_q)
    return first, end
