# output = softmax(scores) v and lse for few query rows: the rows of all heads of q that share one of k are blocks of
# BLOCK_M rows, the keys are split over programs, and a second kernel combines the results in the order of the keys.
# Saves lse in float64.

import triton
import triton.language as tl

from .triton_scores import kept, load_rows, rows_at, scores, seen_keys, sequence, store_rows
from .triton_softmax import begin_softmax, finish_softmax, take_scores

_LENGTHS = [
    "H", "heads", "L_q", "L_k", "max_q", "splits", "left", "right", "threshold",
    "stride_mb", "stride_mh", "stride_mq", "stride_mk", "stride_bb", "stride_bh", "stride_bq", "stride_bk",
    "stride_ob", "stride_oh", "stride_lb", "stride_lh", "stride_sb",
]  # fmt: skip


@triton.jit
def folded_rows(block, first_head, heads, rows_q, BLOCK_M: tl.constexpr):
    """(row, its query, its head, rows in all) of a block of the queries of all heads of a group, head by head.

    Rows behind the last take its place: nothing of them is stored.
    """
    rows = heads * rows_q
    r = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = tl.minimum(r, rows - 1)
    return r, inside % rows_q, first_head + inside // rows_q, rows


@triton.jit
def store_rows_and_lse(
    output_ptr, lse_ptr, b, h, first_q, i, r, rows, highest, total, output,
    stride_ob, stride_oh, stride_ol, stride_lb, stride_lh, D_V: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Rows r of query i and head h."""
    output, lse = finish_softmax(highest, total, output)
    tl.store(rows_at(lse_ptr, b, h, first_q, stride_lb, stride_lh, 1) + i, lse, mask=r < rows)
    output_ptr = rows_at(output_ptr, b, h, first_q + i, stride_ob, stride_oh, stride_ol)
    store_rows(output_ptr[:, None], 0, r, rows, output, D_V, BLOCK_DV)


@triton.jit(do_not_specialize=_LENGTHS)
def attention_decode_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, bias_ptr, slopes_ptr, sink_ptr, seed_ptr, starts_q_ptr, starts_k_ptr,
    output_ptr, lse_ptr, partial_ptr,
    stride_qb, stride_qh, stride_ql, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
    stride_mb, stride_mh, stride_mq, stride_mk, stride_bb, stride_bh, stride_bq, stride_bk, stride_sb,
    stride_ob, stride_oh, stride_ol, stride_lb, stride_lh,
    H, heads, L_q, L_k, max_q, splits, left, right, threshold, scale, softcap, factor,
    D: tl.constexpr, D_V: tl.constexpr, CAPPED: tl.constexpr, TOP_LEFT: tl.constexpr, RANGED: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """heads: of q for one of k. factor: 1 / (1 - dropout_p). partial: [block, split, BLOCK_M, 2 + BLOCK_DV], highest
    and total before the output; None where the keys are not split."""
    blocks = tl.cdiv(heads * max_q, BLOCK_M)
    split = tl.program_id(0) % splits
    block_of_all = tl.program_id(0) // splits
    block, group = block_of_all % blocks, block_of_all // blocks
    b, h_kv = group // (H // heads), group % (H // heads)
    first_q, rows_q = sequence(starts_q_ptr, b, L_q)
    first_k, rows_k = sequence(starts_k_ptr, b, L_k)
    if block * BLOCK_M >= heads * rows_q:
        return
    shift = rows_k - rows_q
    if TOP_LEFT:
        shift = shift * 0
    r, i, h, rows = folded_rows(block, h_kv * heads, heads, rows_q, BLOCK_M)
    q_ptr = rows_at(q_ptr, b, h, first_q, stride_qb, stride_qh, stride_ql)[:, None]
    k_ptr = rows_at(k_ptr, b, h_kv, first_k, stride_kb, stride_kh, stride_kl)
    v_ptr = rows_at(v_ptr, b, h_kv, first_k, stride_vb, stride_vh, stride_vl)
    if mask_ptr is not None:
        mask_ptr = rows_at(mask_ptr, b, h, first_q, stride_mb, stride_mh, stride_mq)[:, None]
    if bias_ptr is not None:
        bias_ptr = rows_at(bias_ptr, b, h, first_q, stride_bb, stride_bh, stride_bq)[:, None]
    slope = 0.0
    if slopes_ptr is not None:
        slope = tl.load(slopes_ptr + b * stride_sb + h)[:, None]
    q = load_rows(q_ptr, stride_ql, i, rows_q, D, BLOCK_D)
    highest, total, output = begin_softmax(sink_ptr, h, BLOCK_M, BLOCK_DV)
    if sink_ptr is not None:
        highest = tl.where(split == 0, highest, float("-inf"))
        total = tl.where(split == 0, total, 0.0)
    begin, end = seen_keys(0, rows_q, shift, rows_k, left, right, BLOCK_N, RANGED)
    share = tl.cdiv(tl.cdiv(tl.maximum(end - begin, 0), BLOCK_N), splits) * BLOCK_N
    begin += split * share
    end = tl.minimum(begin + share, end)
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
            keep = kept(seed_ptr, (b * H + h)[:, None], i, first, threshold, BLOCK_M, BLOCK_N)
            p = tl.where(keep, p * factor, 0.0)
        v = load_rows(v_ptr, stride_vl, j, rows_k, D_V, BLOCK_DV)
        output = tl.dot(p.to(v.dtype), v, output * scaled[:, None], input_precision="ieee")
    if partial_ptr is None:
        store_rows_and_lse(
            output_ptr, lse_ptr, b, h, first_q, i, r, rows, highest, total, output,
            stride_ob, stride_oh, stride_ol, stride_lb, stride_lh, D_V, BLOCK_DV,
        )  # fmt: skip
    else:
        row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        partial_ptr += row * (2 + BLOCK_DV)
        tl.store(partial_ptr, highest)
        tl.store(partial_ptr + 1, total)
        tl.store(partial_ptr[:, None] + 2 + tl.arange(0, BLOCK_DV)[None, :], output)


@triton.jit(do_not_specialize=_LENGTHS)
def attention_combine_kernel(
    partial_ptr, starts_q_ptr, output_ptr, lse_ptr,
    stride_ob, stride_oh, stride_ol, stride_lb, stride_lh, H, heads, L_q, max_q, splits,
    D_V: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: one row of `partial`, BLOCK_S splits at a time."""
    blocks = tl.cdiv(heads * max_q, BLOCK_M)
    row = tl.program_id(0) % BLOCK_M
    block_of_all = tl.program_id(0) // BLOCK_M
    block, group = block_of_all % blocks, block_of_all // blocks
    b, first_head = group // (H // heads), group % (H // heads) * heads
    first_q, rows_q = sequence(starts_q_ptr, b, L_q)
    r, rows = block * BLOCK_M + row, heads * rows_q
    if r >= rows:
        return
    d = tl.arange(0, BLOCK_DV)
    highest, total, output = begin_softmax(None, 0, 1, BLOCK_DV)
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        inside = split < splits
        place = partial_ptr + ((block_of_all.to(tl.int64) * splits + split) * BLOCK_M + row) * (2 + BLOCK_DV)
        of_split = tl.load(place, mask=inside, other=float("-inf"))
        higher = tl.maximum(highest, tl.max(of_split, 0))
        reference = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp(of_split - reference)
        scaled = tl.exp(highest - reference)
        total = total * scaled + tl.sum(tl.load(place + 1, mask=inside, other=0.0) * weight, 0)
        part = tl.load(place[:, None] + 2 + d[None, :], mask=inside[:, None], other=0.0)
        output = output * scaled[:, None] + tl.sum(part * weight[:, None], 0)[None, :]
        highest = higher
    i, h = r % rows_q + tl.arange(0, 1), first_head + r // rows_q + tl.arange(0, 1)
    store_rows_and_lse(
        output_ptr, lse_ptr, b, h, first_q, i, r + tl.arange(0, 1), rows, highest, total, output,
        stride_ob, stride_oh, stride_ol, stride_lb, stride_lh, D_V, BLOCK_DV,
    )  # fmt: skip
