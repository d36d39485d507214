# output = softmax(scores) v and lse by online softmax over blocks of keys; the scores never reach memory.
# One program: BLOCK_M queries of one head of one sequence, all keys they see.
# Saves lse in float64 for backward.

import triton
import triton.language as tl

from .triton_scores import kept, load_rows, rows_at, scores, seen_keys, sequence, store_rows
from .triton_softmax import begin_softmax, finish_softmax, take_scores

_LENGTHS = [
    "H", "heads", "L_q", "L_k", "max_q", "left", "right", "threshold",
    "stride_mb", "stride_mh", "stride_mq", "stride_mk", "stride_bb", "stride_bh", "stride_bq", "stride_bk",
    "stride_ob", "stride_oh", "stride_lb", "stride_lh", "stride_sb",
]  # fmt: skip


@triton.jit(do_not_specialize=_LENGTHS)
def attention_forward_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, bias_ptr, slopes_ptr, sink_ptr, seed_ptr, starts_q_ptr, starts_k_ptr,
    output_ptr, lse_ptr,
    stride_qb, stride_qh, stride_ql, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
    stride_mb, stride_mh, stride_mq, stride_mk, stride_bb, stride_bh, stride_bq, stride_bk, stride_sb,
    stride_ob, stride_oh, stride_ol, stride_lb, stride_lh,
    H, heads, L_q, L_k, max_q, left, right, threshold, scale, softcap, factor,
    D: tl.constexpr, D_V: tl.constexpr, CAPPED: tl.constexpr, TOP_LEFT: tl.constexpr, RANGED: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """heads: of q for one of k. factor: 1 / (1 - dropout_p)."""
    blocks = tl.cdiv(max_q, BLOCK_M)
    # the last queries of a causal call see the most keys: they go first
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
    if mask_ptr is not None:
        mask_ptr = rows_at(mask_ptr, b, h, first_q, stride_mb, stride_mh, stride_mq)
    if bias_ptr is not None:
        bias_ptr = rows_at(bias_ptr, b, h, first_q, stride_bb, stride_bh, stride_bq)
    slope = 0.0
    if slopes_ptr is not None:
        slope = tl.load(slopes_ptr + b * stride_sb + h)
    i = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q = load_rows(q_ptr, stride_ql, i, rows_q, D, BLOCK_D)
    highest, total, output = begin_softmax(sink_ptr, h, BLOCK_M, BLOCK_DV)
    begin, end = seen_keys(block * BLOCK_M, BLOCK_M, shift, rows_k, left, right, BLOCK_N, RANGED)
    for first in range(begin, end, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        k = load_rows(k_ptr, stride_kl, j, rows_k, D, BLOCK_D)
        s, _ = scores(
            q, k, i, j, rows_q, rows_k, shift, left, right, scale, softcap, slope,
            mask_ptr, stride_mq, stride_mk, bias_ptr, stride_bq, stride_bk,
            CAPPED, slopes_ptr is not None, RANGED,
        )  # fmt: skip
        p, scaled, highest, total = take_scores(s, highest, total)
        if seed_ptr is not None:
            keep = kept(seed_ptr, head, i, first, threshold, BLOCK_M, BLOCK_N)
            p = tl.where(keep, p * factor, 0.0)
        v = load_rows(v_ptr, stride_vl, j, rows_k, D_V, BLOCK_DV)
        output = tl.dot(p.to(v.dtype), v, output * scaled[:, None], input_precision="ieee")
    output, lse = finish_softmax(highest, total, output)
    tl.store(rows_at(lse_ptr, b, h, first_q, stride_lb, stride_lh, 1) + i, lse, mask=i < rows_q)
    output_ptr = rows_at(output_ptr, b, h, first_q, stride_ob, stride_oh, stride_ol)
    store_rows(output_ptr, stride_ol, i, rows_q, output, D_V, BLOCK_DV)
