# The gradient of the bias: the gradient of the scores, summed over what the bias is broadcast over, in a fixed order.
# One program: one tile of the bias (one row or column of it where it has only one), and every sequence, head and tile
# that shares it. Saves nothing.

import triton
import triton.language as tl

from .triton_backward import LENGTHS, gradient_of_scores, row_values
from .triton_scores import load_rows, rows_at, scores


@triton.jit(do_not_specialize=[*LENGTHS, "size_b", "size_h", "size_q", "size_k"])
def attention_grad_bias_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, bias_ptr, slopes_ptr, seed_ptr, grad_output_ptr, lse_ptr, delta_ptr, grad_bias_ptr,
    stride_qb, stride_qh, stride_ql, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
    stride_mb, stride_mh, stride_mq, stride_mk, stride_bb, stride_bh, stride_bq, stride_bk, stride_sb,
    stride_gb, stride_gh, stride_gl, stride_lb, stride_lh, size_b, size_h, size_q, size_k,
    B, H, heads, L_q, L_k, left, right, threshold, scale, softcap, factor,
    D: tl.constexpr, D_V: tl.constexpr, CAPPED: tl.constexpr, TOP_LEFT: tl.constexpr, RANGED: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """size_*: of the bias, contiguous; each that of the scores or 1."""
    zero = L_q * 0
    columns, rows = tl.cdiv(size_k, BLOCK_N), tl.cdiv(size_q, BLOCK_M)
    column, row = tl.program_id(0) % columns, tl.program_id(0) // columns % rows
    plane = tl.program_id(0) // columns // rows
    own_b, own_h = plane // size_h, plane % size_h
    b_0, b_1 = tl.where(size_b == 1, zero, own_b), tl.where(size_b == 1, B, own_b + 1)
    h_0, h_1 = tl.where(size_h == 1, zero, own_h), tl.where(size_h == 1, H, own_h + 1)
    i_0, i_1 = tl.where(size_q == 1, zero, row * BLOCK_M), tl.where(size_q == 1, L_q, row * BLOCK_M + BLOCK_M)
    j_0, j_1 = (
        tl.where(size_k == 1, zero, column * BLOCK_N),
        tl.where(size_k == 1, L_k, column * BLOCK_N + BLOCK_N),
    )
    shift = L_k - L_q
    if TOP_LEFT:
        shift = shift * 0
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for each_b in range(b_0, b_1):
        b = zero + each_b
        for each_h in range(h_0, h_1):
            h = zero + each_h
            h_kv = h // heads
            mask_head = None
            if mask_ptr is not None:
                mask_head = rows_at(mask_ptr, b, h, zero, stride_mb, stride_mh, stride_mq)
            bias_head = rows_at(bias_ptr, b, h, zero, stride_bb, stride_bh, stride_bq)
            slope = 0.0
            if slopes_ptr is not None:
                slope = tl.load(slopes_ptr + b * stride_sb + h)
            for top in range(i_0, i_1, BLOCK_M):
                i = top + tl.arange(0, BLOCK_M)
                near, rest, delta = row_values(
                    rows_at(lse_ptr, b, h, zero, stride_lb, stride_lh, 1),
                    rows_at(delta_ptr, b, h, zero, stride_lb, stride_lh, 1),
                    i,
                    L_q,
                )
                q_head = rows_at(q_ptr, b, h, zero, stride_qb, stride_qh, stride_ql)
                q = load_rows(q_head, stride_ql, i, L_q, D, BLOCK_D)
                grad_head = rows_at(grad_output_ptr, b, h, zero, stride_gb, stride_gh, stride_gl)
                grad_output = load_rows(grad_head, stride_gl, i, L_q, D_V, BLOCK_DV)
                for first in range(j_0, j_1, BLOCK_N):
                    j = first + tl.arange(0, BLOCK_N)
                    k_head = rows_at(k_ptr, b, h_kv, zero, stride_kb, stride_kh, stride_kl)
                    k = load_rows(k_head, stride_kl, j, L_k, D, BLOCK_D)
                    s, _ = scores(
                        q, k, i, j, L_q, L_k, shift, left, right, scale, softcap, slope,
                        mask_head, stride_mq, stride_mk, bias_head, stride_bq, stride_bk,
                        CAPPED, slopes_ptr is not None, RANGED,
                    )  # fmt: skip
                    v_head = rows_at(v_ptr, b, h_kv, zero, stride_vb, stride_vh, stride_vl)
                    v = load_rows(v_head, stride_vl, j, L_k, D_V, BLOCK_DV)
                    _, grad_s = gradient_of_scores(
                        s, v, grad_output, near, rest, delta, seed_ptr, b * H + h, i, first, threshold, factor,
                        BLOCK_M, BLOCK_N,
                    )  # fmt: skip
                    total += grad_s
    i, j = row * BLOCK_M + tl.arange(0, BLOCK_M), column * BLOCK_N + tl.arange(0, BLOCK_N)
    if size_q == 1:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32) + tl.sum(total, 0)[None, :]
    if size_k == 1:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32) + tl.sum(total, 1)[:, None]
    inside = (i[:, None] < size_q) & (j[None, :] < size_k)
    where = (plane.to(tl.int64) * size_q + i[:, None]) * size_k + j[None, :]
    tl.store(grad_bias_ptr + where, total.to(grad_bias_ptr.dtype.element_ty), mask=inside)
