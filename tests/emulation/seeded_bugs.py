"""Bugs the emulation must catch: in its feature kernels (by number), in the real kernels (by a changed line)."""

from __future__ import annotations

from .attention_bugs import ATTENTION
from .mutation import Mutation

# Kernel of features.cuh -> its bugs.
FEATURES = {
    "matmul": (1, 2, 3, 4, 11),
    "softmax": (6, 8, 10),
    "reverse_pairs": (7,),
    "recurrence": (9,),
    "cluster_recurrence": (14, 15, 24),
    "tensor_product": (5, 12, 13),
    "fragment_tile": (16, 22),
    "ring": (17, 18),
    "warpgroup_products": (28, 29, 30, 31, 32, 33, 34),
    "total": (19, 20, 23),
    "column": (21,),
    "scan": (25, 26, 27),
}
# A lost update, a missing fence and an early flag show only as races (ThreadSanitizer), a misaligned load only to
# UndefinedBehaviorSanitizer.
ONLY_SANITIZERS = (19, 20, 23, 25)
_OPS = "ops/conv_relu_maxpool"
_RNN = "ops/rnn"
_DIFFUSION = "ops/diffusion"
_CONV2D = "ops/conv2d"
MUTATIONS = (
    *ATTENTION,
    Mutation(
        "no barrier between a stage's arrival and its use",
        f"{_OPS}/implicit_gemm_cuda.cu",
        "fd::cp_async_wait<kStages - 2>();\n    __syncthreads();",
        "fd::cp_async_wait<kStages - 2>();",
    ),
    Mutation(
        "waits for one stage too few",
        f"{_OPS}/implicit_gemm_cuda.cu",
        "fd::cp_async_wait<kStages - 2>()",
        "fd::cp_async_wait<kStages - 1>()",
    ),
    Mutation(
        "the first table is read before it is written",
        f"{_OPS}/implicit_gemm_cuda.cu",
        "load.describe(0);\n  __syncthreads();",
        "load.describe(0);",
    ),
    Mutation(
        "the table of the tile in use is overwritten",
        f"{_OPS}/implicit_gemm_load.cuh",
        "int slot = tile % 2 * kDepth<T> + threadIdx.x;",
        "int slot = threadIdx.x;",
    ),
    Mutation(
        "gathered values go into the stage that is being multiplied",
        f"{_OPS}/implicit_gemm_cuda.cu",
        "load.finish(shared + next % kStages * kBytes);",
        "load.finish(shared + tile % kStages * kBytes);",
    ),
    Mutation(
        "gathered chunks are stored one place off",
        f"{_OPS}/implicit_gemm_load.cuh",
        "swizzled(threadIdx.x + i * kThreads, chunk)",
        "swizzled(threadIdx.x + i * kThreads, chunk ^ 1)",
    ),
    Mutation(
        "window positions transposed",
        f"{_OPS}/implicit_gemm_tile.cuh",
        "tile % 2 * 2 + half",
        "tile % 2 + half * 2",
    ),
    Mutation(
        "channels dealt in the wrong order",
        f"{_OPS}/implicit_gemm_tile.cuh",
        "+ tile * 2 + column % 2",
        "+ tile + column % 2 * 4",
    ),
    Mutation(
        "windows behind the last are stored",
        f"{_OPS}/implicit_gemm_store.cuh",
        "if (block_start + window * kPositions >= p.positions) continue;",
        "",
    ),
    Mutation(
        "channels behind the last are stored",
        f"{_OPS}/implicit_gemm_store.cuh",
        "if (channel_ + c >= p_.C_out) break;",
        "",
    ),
    Mutation(
        "bias behind the last channel is read",
        f"{_OPS}/implicit_gemm_store.cuh",
        "p.bias && channel + c < p.C_out",
        "p.bias",
    ),
    Mutation(
        "the row below the image counts as inside",
        f"{_OPS}/implicit_gemm_load.cuh",
        "< static_cast<unsigned>(p.H)",
        "<= static_cast<unsigned>(p.H)",
    ),
    Mutation("the last of equal values wins", f"{_OPS}/window.cuh", "v > value", "v >= value"),
    Mutation(
        "a ReLU of exactly zero counts as open", f"{_OPS}/window.cuh", "fd::to_compute(rounded) <= 0",
        "fd::to_compute(rounded) < 0",
    ),
    Mutation(
        "gradients of the border's quads are written outside",
        f"{_OPS}/bias_relu_maxpool_backward.cuh",
        "if (h >= p.CH || w >= p.CW) continue;",
        "",
    ),
    Mutation(
        "partial sums are read before they are written",
        f"{_OPS}/grad_bias.cuh",
        "= sum[i];\n  __syncthreads();",
        "= sum[i];",
    ),
    Mutation(
        "the block's sum does not wait for its warps",
        "common/cuda/reduce.cuh",
        "= v;\n  __syncthreads();",
        "= v;",
    ),
    Mutation(
        "sums are read before all warps have written theirs",
        f"{_RNN}/step_product.cuh",
        "sums[warp][q][row][unit]; });\n  __syncthreads();",
        "sums[warp][q][row][unit]; });",
        "rnn"
    ),
    Mutation(
        "the step at a sequence's length is still active",
        f"{_RNN}/step_rows.cuh",
        "rows.t < q.lengths[b]",
        "rows.t <= q.lengths[b]",
        "rnn"
    ),
    Mutation(
        "a row's sum is overwritten before all have read it",
        f"{_RNN}/norm_forward.cuh",
        "v = total[0];\n  __syncthreads();",
        "v = total[0];",
        "rnn"
    ),
    Mutation(
        "a persistent step uses sums that are not there yet",
        f"{_RNN}/persistent_forward.cuh",
        "__syncthreads();\n    thread.step(time(i), product);",
        "thread.step(time(i), product);",
        "rnn"
    ),
    Mutation(
        "a block sends units its other warps have not written",
        f"{_RNN}/persistent_exchange.cuh",
        "__syncthreads();\n      if (s_.blocks == 1) return;\n      // Four lanes a row; a warp serves",
        "if (s_.blocks == 1) return __syncthreads();\n      // Four lanes a row; a warp serves",
        "rnn"
    ),
    Mutation(
        "the next step's values overwrite those others still read",
        f"{_RNN}/persistent_forward.cuh",
        "T* next = memory.values + (i + 1) %",
        "T* next = memory.values + i %",
        "rnn"
    ),
    Mutation(
        "a block writes to another that may not have zeroed its values",
        f"{_RNN}/persistent_exchange.cuh",
        "fd::cluster_sync();",
        "__syncthreads();",
        "rnn"
    ),
    Mutation(
        "a block of a grid announces values that others need not see yet",
        f"{_RNN}/persistent_exchange.cuh",
        "fd::add_release(arrivals_, 1u)",
        "atomicAdd(arrivals_, 1u)",
        "rnn"
    ),
    Mutation(
        "a grid's step waits for the arrivals of the one before",
        f"{_RNN}/persistent_exchange.cuh",
        "- step_ * s_.blocks) < 0",
        "- (step_ - 1) * s_.blocks) < 0",
        "rnn"
    ),
    Mutation(
        "the groups of a grid share a counter",
        f"{_RNN}/persistent_exchange.cuh",
        "groups.arrivals + group * kArrivalStride",
        "groups.arrivals",
        "rnn"
    ),
    Mutation(
        "a persistent sequence takes one step too many",
        f"{_RNN}/persistent_forward.cuh",
        "max(q_.lengths[b], int64_t{0})",
        "max(q_.lengths[b] + 1, int64_t{0})",
        "rnn"
    ),
    Mutation(
        "a descriptor's groups of eight rows are 128 bytes apart",
        "common/cuda/shared_matrix.cuh",
        "field(kPieceAlignment) << 32",
        "field(kPieceRowBytes) << 32",
        "attention",
    ),
    Mutation(
        "a digit is looked for before all have counted",
        f"{_DIFFUSION}/quantile.cuh",
        "fd::cluster_sync();\n    const Digit digit",
        "const Digit digit",
        "diffusion",
    ),
    Mutation(
        "magnitudes are counted before all bins are cleared",
        f"{_DIFFUSION}/quantile.cuh",
        "bins[i] = 0;\n    __syncthreads();",
        "bins[i] = 0;",
        "diffusion",
    ),
    Mutation(
        "the digit that one thread found is not waited for",
        f"{_DIFFUSION}/quantile.cuh",
        "fd::cluster_sync();\n  return found[0];",
        "return found[0];",
        "diffusion",
    ),
    Mutation(
        "a sample's sum is used before its warps have written theirs",
        f"{_DIFFUSION}/cluster.cuh",
        "= v[k];\n  }\n  __syncthreads();",
        "= v[k];\n  }",
        "diffusion",
    ),
    Mutation(
        "a block exits while others still read its sum",
        f"{_DIFFUSION}/cluster.cuh",
        "nor exits.\n  fd::cluster_sync();",
        "nor exits.",
        "diffusion",
    ),
    Mutation(
        "a vector behind the last",
        f"{_DIFFUSION}/elements.cuh",
        "i < whole;",
        "i <= whole;",
        "diffusion",
    ),
    Mutation(
        "samples that share a row write a value each",
        f"{_DIFFUSION}/step.cuh",
        "sample == 0 || ",
        "true || ",
        "diffusion",
    ),
    Mutation(
        "a pair of elements takes the first two deviates of its counter",
        f"{_DIFFUSION}/elements.cuh",
        "const bool late = N < 4 && at & 2,",
        "const bool late = false,",
        "diffusion",
    ),
    Mutation(
        "threads behind the last item finish what is there",
        f"{_CONV2D}/epilogue.cuh",
        "if (item >= p.items) return;\n  uint32_t plane",
        "uint32_t plane",
        "conv2d",
    ),
    Mutation(
        "a vector of channels takes the scale of another",
        f"{_CONV2D}/epilogue.cuh",
        "p.by_inner.split(pixel) * V;",
        "p.by_inner.split(pixel);",
        "conv2d",
    ),
    Mutation(
        "NaN does not pass the ReLU",
        f"{_CONV2D}/epilogue.cuh",
        "fd::to_compute(rounded) <= 0",
        "!(fd::to_compute(rounded) > 0)",
        "conv2d",
    ),
    Mutation(
        "a vector reaches into the next plane",
        f"{_CONV2D}/conv2d_cuda.cu",
        "vectors && plane % V == 0",
        "vectors",
        "conv2d",
    ),
    Mutation(
        "a residual that is not aligned is read in vectors",
        f"{_CONV2D}/conv2d_cuda.cu",
        "fd::aligned(e.y, 16) && fd::aligned(e.residual, 16)",
        "fd::aligned(e.y, 16)",
        "conv2d",
    ),
)  # fmt: skip
