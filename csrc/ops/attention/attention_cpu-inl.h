// The attention kernels, in the order they build on each other. Included by foreach_isa.h: no include guard.

// clang-format off: in the order of use
#include "common/cpu/dot-inl.h"
#include "common/cpu/gemm-inl.h"
#include "common/cpu/math-inl.h"
#include "common/cpu/philox-inl.h"
#include "common/cpu/tiles-inl.h"
#if FASTDL_TILES
#include "common/cpu/tile_gemm-inl.h"
#endif
#if FASTDL_SPLIT_TILES
#include "common/cpu/split_gemm-inl.h"
#endif
#include "ops/attention/attention_tile-inl.h"
#include "ops/attention/attention_scores-inl.h"
#include "ops/attention/attention_results-inl.h"
#include "ops/attention/attention_vectors-inl.h"
#if FASTDL_TILES
#include "ops/attention/attention_bf16-inl.h"
#endif
#include "ops/attention/attention_decode-inl.h"
#include "ops/attention/attention_forward-inl.h"
#if FASTDL_ISA < FASTDL_ISA_AVX512BF16
#include "ops/attention/attention_weights-inl.h"
#endif
#include "ops/attention/attention_gradient-inl.h"
#include "ops/attention/attention_backward-inl.h"
// clang-format on

// fp32 and fp16 on vectors, which products of bf16 leave as they are.
#if FASTDL_ISA >= FASTDL_ISA_AVX512BF16
using avx512::kOnVectors;
#else
inline constexpr AttentionKernels kOnVectors[2] = {{forward<float>, backward<float>, weigh},
                                                   {forward<Float16>, backward<Float16>, nullptr}};
#endif
#if FASTDL_SPLIT_TILES
#include "ops/attention/attention_split-inl.h"
//
#include "ops/attention/attention_by_size-inl.h"
#endif

// By dtype; fp64 stays with the reference.
inline constexpr AttentionKernels kAttention[4] = {
    {nullptr, nullptr, nullptr},
#if FASTDL_SPLIT_TILES
    {forward_by_size, backward_by_size, kOnVectors[0].weights},
#else
    kOnVectors[0],
#endif
    kOnVectors[1],
#if FASTDL_TILES
    {forward<BFloat16, TileForward>, backward<BFloat16, TileBackward>, nullptr},
#else
    {forward<BFloat16>, backward<BFloat16>, nullptr},
#endif
};
