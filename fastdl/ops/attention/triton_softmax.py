# The running softmax of rows over blocks of keys: maximum, sum, and the output they weight.
# One program: all blocks of keys of its rows, in order.
# Saves lse in float64 for backward.

import triton
import triton.language as tl


@triton.jit
def begin_softmax(sink_ptr, heads, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr):
    """(highest, total, output) before any key: the sink's, if there is one. heads: of the rows, or of all."""
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if sink_ptr is not None:
        highest = tl.zeros((BLOCK_M,), tl.float32) + tl.load(sink_ptr + heads)
        total += tl.where(highest == float("-inf"), 0.0, 1.0)
    return highest, total, tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)


@triton.jit
def take_scores(s, highest, total):
    """(powers of the scores, factor for the output so far, the new highest and total)"""
    higher = tl.maximum(highest, tl.max(s, 1))
    reference = tl.where(higher == float("-inf"), 0.0, higher)
    p = tl.exp(s - reference[:, None])
    scaled = tl.exp(highest - reference)
    return p, scaled, higher, total * scaled + tl.sum(p, 1)


@triton.jit
def finish_softmax(highest, total, output):
    """(output, lse); 0 and -inf for a row that saw nothing."""
    closed = total == 0
    reference = tl.where(highest == float("-inf"), 0.0, highest)
    lse = reference.to(tl.float64) + tl.log(tl.where(closed, 1.0, total).to(tl.float64))
    output = tl.where(closed[:, None], 0.0, output / tl.where(closed, 1.0, total)[:, None])
    return output, tl.where(closed, float("-inf"), lse)
