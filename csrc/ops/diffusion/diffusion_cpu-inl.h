// The diffusion step, its backward, and noise alone: chooses by dtype. Work is split into pieces of one
// sample, contiguous in memory; a piece is done in groups of 4 kLanes elements held in registers. Saves
// nothing.

// clang-format off: in the order of use
#include "common/cpu/philox-inl.h"
#include "common/cpu/normal-inl.h"
#include "ops/diffusion/group-inl.h"
#include "ops/diffusion/sample-inl.h"
#include "ops/diffusion/step-inl.h"
#include "ops/diffusion/step_backward-inl.h"
// clang-format on

// By DType.
inline constexpr void (*kStep[4])(const DiffusionStep&, const ThreadPool&) = {step<double>, step<float>,
                                                                              step<Float16>, step<BFloat16>};
inline constexpr void (*kStepBackward[4])(const DiffusionStepBackward&, const ThreadPool&) = {
    step_backward<double>, step_backward<float>, step_backward<Float16>, step_backward<BFloat16>};
inline constexpr void (*kNormalNoise[4])(const NormalNoise&, const ThreadPool&) = {
    noise<double>, noise<float>, noise<Float16>, noise<BFloat16>};
