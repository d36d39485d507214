// The attention kernels, in the order they build on each other. Included by foreach_isa.h: no include guard.

// clang-format off: in the order of use
#include "common/cpu/dot-inl.h"
#include "common/cpu/gemm-inl.h"
#include "common/cpu/math-inl.h"
#include "common/cpu/philox-inl.h"
#include "ops/attention/attention_tile-inl.h"
#include "ops/attention/attention_scores-inl.h"
#include "ops/attention/attention_results-inl.h"
#include "ops/attention/attention_decode-inl.h"
#include "ops/attention/attention_forward-inl.h"
#include "ops/attention/attention_gradient-inl.h"
#include "ops/attention/attention_backward-inl.h"
// clang-format on

// By dtype; fp64 stays with the reference.
inline constexpr AttentionKernels kAttention[4] = {
    {nullptr, nullptr},
    {forward<float>, backward<float>},
    {forward<Float16>, backward<Float16>},
    {forward<BFloat16>, backward<BFloat16>},
};
