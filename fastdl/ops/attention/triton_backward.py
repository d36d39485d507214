# Gradients of q, k, v and the bias: scores and their powers are computed again from q, k and lse.
# One program: for q BLOCK_M queries of a head and all keys; for k and v BLOCK_N keys of a head of k, all its heads of q
# and their queries; for a bias one tile of it, and every sequence, head or tile that shares it. Saves nothing.

import triton
import triton.language as tl

from .triton_scores import kept, load_rows, rows_at, scores, seeing_queries, seen_keys, sequence, store_rows

LENGTHS = [
    "B", "H", "heads", "L_q", "L_k", "max_q", "max_k", "left", "right", "threshold",
    "stride_mb", "stride_mh", "stride_mq", "stride_mk", "stride_bb", "stride_bh", "stride_bq", "stride_bk",
    "stride_ob", "stride_oh", "stride_lb", "stride_lh", "stride_sb", "stride_gb", "stride_gh",
    "stride_dqb", "stride_dqh", "stride_dkb", "stride_dkh", "stride_dvb", "stride_dvh",
]  # fmt: skip


@triton.jit(do_not_specialize=LENGTHS)
def attention_delta_kernel(
    output_ptr, grad_output_ptr, grad_lse_ptr, starts_q_ptr, delta_ptr,
    stride_ob, stride_oh, stride_ol, stride_gb, stride_gh, stride_gl, stride_lb, stride_lh, H, L_q, max_q,
    D_V: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """delta = sum_d grad_output output - grad_lse"""
    blocks = tl.cdiv(max_q, BLOCK_M)
    head = tl.program_id(0) // blocks
    b, h = head // H, head % H
    first_q, rows_q = sequence(starts_q_ptr, b, L_q)
    i = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    output_ptr = rows_at(output_ptr, b, h, first_q, stride_ob, stride_oh, stride_ol)
    grad_output_ptr = rows_at(grad_output_ptr, b, h, first_q, stride_gb, stride_gh, stride_gl)
    output = load_rows(output_ptr, stride_ol, i, rows_q, D_V, BLOCK_DV).to(tl.float32)
    grad_output = load_rows(grad_output_ptr, stride_gl, i, rows_q, D_V, BLOCK_DV).to(tl.float32)
    delta = tl.sum(output * grad_output, 1)
    if grad_lse_ptr is not None:
        grad_lse_ptr = rows_at(grad_lse_ptr, b, h, first_q, stride_lb, stride_lh, 1)
        delta -= tl.load(grad_lse_ptr + i, mask=i < rows_q, other=0.0).to(tl.float32)
    tl.store(rows_at(delta_ptr, b, h, first_q, stride_lb, stride_lh, 1) + i, delta, mask=i < rows_q)


@triton.jit
def row_values(lse_ptr, delta_ptr, i, rows_q):
    """lse in two parts, since one float32 would be wrong by more than the powers may be, and delta."""
    lse = tl.load(lse_ptr + i, mask=i < rows_q, other=float("inf"))
    # a row that sees nothing has powers 0
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    near = lse.to(tl.float32)
    rest = tl.where(near == float("inf"), 0.0, (lse - near.to(tl.float64)).to(tl.float32))
    return near, rest, tl.load(delta_ptr + i, mask=i < rows_q, other=0.0)


@triton.jit
def gradient_of_scores(
    s, v, grad_output, near, rest, delta, seed_ptr, head, i, first, threshold, factor,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(powers with dropout, gradient of the shown scores)"""
    p = tl.exp(s - near[:, None] - rest[:, None])
    grad_p = tl.dot(grad_output, tl.trans(v), input_precision="ieee")
    dropped = p
    if seed_ptr is not None:
        keep = kept(seed_ptr, head, i, first, threshold, BLOCK_M, BLOCK_N)
        dropped = tl.where(keep, p * factor, 0.0)
        grad_p = tl.where(keep, grad_p * factor, 0.0)
    return dropped, p * (grad_p - delta[:, None])


@triton.jit(do_not_specialize=LENGTHS)
def attention_grad_q_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, bias_ptr, slopes_ptr, seed_ptr, starts_q_ptr, starts_k_ptr,
    grad_output_ptr, lse_ptr, delta_ptr, grad_q_ptr,
    stride_qb, stride_qh, stride_ql, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
    stride_mb, stride_mh, stride_mq, stride_mk, stride_bb, stride_bh, stride_bq, stride_bk, stride_sb,
    stride_gb, stride_gh, stride_gl, stride_lb, stride_lh, stride_dqb, stride_dqh, stride_dql,
    H, heads, L_q, L_k, max_q, left, right, threshold, scale, softcap, factor,
    D: tl.constexpr, D_V: tl.constexpr, CAPPED: tl.constexpr, TOP_LEFT: tl.constexpr, RANGED: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(max_q, BLOCK_M)
    block = blocks - 1 - tl.program_id(0) % blocks
    head = tl.program_id(0) // blocks
    b, h = head // H, head % H
    first_q, rows_q = sequence(starts_q_ptr, b, L_q)
    first_k, rows_k = sequence(starts_k_ptr, b, L_k)
    if block * BLOCK_M >= rows_q:
        return
    shift = rows_k - rows_q
    if TOP_LEFT:
        shift = shift * 0
    h_kv = h // heads
    q_ptr = rows_at(q_ptr, b, h, first_q, stride_qb, stride_qh, stride_ql)
    k_ptr = rows_at(k_ptr, b, h_kv, first_k, stride_kb, stride_kh, stride_kl)
    v_ptr = rows_at(v_ptr, b, h_kv, first_k, stride_vb, stride_vh, stride_vl)
    grad_output_ptr = rows_at(grad_output_ptr, b, h, first_q, stride_gb, stride_gh, stride_gl)
    if mask_ptr is not None:
        mask_ptr = rows_at(mask_ptr, b, h, first_q, stride_mb, stride_mh, stride_mq)
    if bias_ptr is not None:
        bias_ptr = rows_at(bias_ptr, b, h, first_q, stride_bb, stride_bh, stride_bq)
    slope = 0.0
    if slopes_ptr is not None:
        slope = tl.load(slopes_ptr + b * stride_sb + h)
    i = block * BLOCK_M + tl.arange(0, BLOCK_M)
    lse_ptr = rows_at(lse_ptr, b, h, first_q, stride_lb, stride_lh, 1)
    delta_ptr = rows_at(delta_ptr, b, h, first_q, stride_lb, stride_lh, 1)
    near, rest, delta = row_values(lse_ptr, delta_ptr, i, rows_q)
    q = load_rows(q_ptr, stride_ql, i, rows_q, D, BLOCK_D)
    grad_output = load_rows(grad_output_ptr, stride_gl, i, rows_q, D_V, BLOCK_DV)
    grad_q = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    begin, end = seen_keys(block * BLOCK_M, BLOCK_M, shift, rows_k, left, right, BLOCK_N, RANGED)
    for first in range(begin, end, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        k = load_rows(k_ptr, stride_kl, j, rows_k, D, BLOCK_D)
        s, slant = scores(
            q, k, i, j, rows_q, rows_k, shift, left, right, scale, softcap, slope,
            mask_ptr, stride_mq, stride_mk, bias_ptr, stride_bq, stride_bk,
            CAPPED, slopes_ptr is not None, RANGED,
        )  # fmt: skip
        v = load_rows(v_ptr, stride_vl, j, rows_k, D_V, BLOCK_DV)
        _, grad_s = gradient_of_scores(
            s,
            v,
            grad_output,
            near,
            rest,
            delta,
            seed_ptr,
            head,
            i,
            first,
            threshold,
            factor,
            BLOCK_M,
            BLOCK_N,
        )
        if CAPPED:
            grad_s *= 1.0 - slant * slant
        grad_q = tl.dot(grad_s.to(k.dtype), k, grad_q, input_precision="ieee")
    grad_q_ptr = rows_at(grad_q_ptr, b, h, first_q, stride_dqb, stride_dqh, stride_dql)
    store_rows(grad_q_ptr, stride_dql, i, rows_q, grad_q * scale, D, BLOCK_D)


@triton.jit(do_not_specialize=LENGTHS)
def attention_grad_kv_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, bias_ptr, slopes_ptr, seed_ptr, starts_q_ptr, starts_k_ptr,
    grad_output_ptr, lse_ptr, delta_ptr, grad_k_ptr, grad_v_ptr,
    stride_qb, stride_qh, stride_ql, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
    stride_mb, stride_mh, stride_mq, stride_mk, stride_bb, stride_bh, stride_bq, stride_bk, stride_sb,
    stride_gb, stride_gh, stride_gl, stride_lb, stride_lh,
    stride_dkb, stride_dkh, stride_dkl, stride_dvb, stride_dvh, stride_dvl,
    H, heads, L_q, L_k, max_k, left, right, threshold, scale, softcap, factor,
    D: tl.constexpr, D_V: tl.constexpr, CAPPED: tl.constexpr, TOP_LEFT: tl.constexpr, RANGED: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(max_k, BLOCK_N)
    block = tl.program_id(0) % blocks
    b, h_kv = tl.program_id(0) // blocks // (H // heads), tl.program_id(0) // blocks % (H // heads)
    first_q, rows_q = sequence(starts_q_ptr, b, L_q)
    first_k, rows_k = sequence(starts_k_ptr, b, L_k)
    if block * BLOCK_N >= rows_k:
        return
    shift = rows_k - rows_q
    if TOP_LEFT:
        shift = shift * 0
    j = block * BLOCK_N + tl.arange(0, BLOCK_N)
    k = load_rows(
        rows_at(k_ptr, b, h_kv, first_k, stride_kb, stride_kh, stride_kl), stride_kl, j, rows_k, D, BLOCK_D
    )
    v = load_rows(
        rows_at(v_ptr, b, h_kv, first_k, stride_vb, stride_vh, stride_vl), stride_vl, j, rows_k, D_V, BLOCK_DV
    )
    grad_k = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    grad_v = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
    begin, end = seeing_queries(block * BLOCK_N, shift, rows_q, left, right, BLOCK_M, BLOCK_N, RANGED)
    for member in range(heads):
        h = h_kv * heads + member
        q_head = rows_at(q_ptr, b, h, first_q, stride_qb, stride_qh, stride_ql)
        grad_head = rows_at(grad_output_ptr, b, h, first_q, stride_gb, stride_gh, stride_gl)
        lse_head = rows_at(lse_ptr, b, h, first_q, stride_lb, stride_lh, 1)
        delta_head = rows_at(delta_ptr, b, h, first_q, stride_lb, stride_lh, 1)
        mask_head = None
        if mask_ptr is not None:
            mask_head = rows_at(mask_ptr, b, h, first_q, stride_mb, stride_mh, stride_mq)
        bias_head = None
        if bias_ptr is not None:
            bias_head = rows_at(bias_ptr, b, h, first_q, stride_bb, stride_bh, stride_bq)
        slope = 0.0
        if slopes_ptr is not None:
            slope = tl.load(slopes_ptr + b * stride_sb + h)
        for top in range(begin, end, BLOCK_M):
            i = top + tl.arange(0, BLOCK_M)
            near, rest, delta = row_values(lse_head, delta_head, i, rows_q)
            q = load_rows(q_head, stride_ql, i, rows_q, D, BLOCK_D)
            s, slant = scores(
                q, k, i, j, rows_q, rows_k, shift, left, right, scale, softcap, slope,
                mask_head, stride_mq, stride_mk, bias_head, stride_bq, stride_bk,
                CAPPED, slopes_ptr is not None, RANGED,
            )  # fmt: skip
            grad_output = load_rows(grad_head, stride_gl, i, rows_q, D_V, BLOCK_DV)
            dropped, grad_s = gradient_of_scores(
                s, v, grad_output, near, rest, delta, seed_ptr, b * H + h, i, block * BLOCK_N, threshold, factor,
                BLOCK_M, BLOCK_N,
            )  # fmt: skip
            if CAPPED:
                grad_s *= 1.0 - slant * slant
            grad_v = tl.dot(
                tl.trans(dropped.to(grad_output.dtype)), grad_output, grad_v, input_precision="ieee"
            )
            grad_k = tl.dot(tl.trans(grad_s.to(q.dtype)), q, grad_k, input_precision="ieee")
    grad_k_ptr = rows_at(grad_k_ptr, b, h_kv, first_k, stride_dkb, stride_dkh, stride_dkl)
    store_rows(grad_k_ptr, stride_dkl, j, rows_k, grad_k * scale, D, BLOCK_D)
    grad_v_ptr = rows_at(grad_v_ptr, b, h_kv, first_k, stride_dvb, stride_dvh, stride_dvl)
    store_rows(grad_v_ptr, stride_dvl, j, rows_k, grad_v, D_V, BLOCK_DV)
