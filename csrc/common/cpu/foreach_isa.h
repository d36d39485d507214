// Compiles FASTDL_ISA_SOURCE once per instruction set, each time in namespace fastdl::cpu::<isa> with
// vec-inl.h.
//
//   #include <every other header>          before this one: they must stay baseline
//   #define FASTDL_ISA_SOURCE "ops/x/x_cpu-inl.h"
//   #define FASTDL_ISA_MAX FASTDL_ISA_AVX512    the last instruction set that makes a difference
//   -DFASTDL_ISA_LAST=1                         and no later one: for a driver that this machine alone runs
//   #include "common/cpu/foreach_isa.h"
//   ... FASTDL_ISA_SELECT(kTable) is the kTable of the instruction set in use ...
//
// The namespace holds an anonymous one: code of one instruction set, or of one file, must never be merged
// with another's at link time. For the same reason the source must not instantiate std templates on its own
// types.

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include <cstdint>
#include <cstring>
#include <utility>

#include "common/cpu/isa.h"
#include "common/dtype.h"

#define FASTDL_ISA_BASELINE 0
#define FASTDL_ISA_AVX2 1
#define FASTDL_ISA_AVX512 2
#define FASTDL_ISA_AVX512BF16 3
#define FASTDL_ISA_AMX 4

// The baseline is SSE2 on x86-64 and NEON on Arm, which has FMA, conversions of fp16 and 32 registers.
#if defined(__aarch64__)
#define FASTDL_NEON 1
#else
#define FASTDL_NEON 0
#endif

#if !defined(__x86_64__)
#undef FASTDL_ISA_MAX
#define FASTDL_ISA_MAX FASTDL_ISA_BASELINE
#elif defined(FASTDL_ISA_LAST) && FASTDL_ISA_LAST < FASTDL_ISA_MAX
#undef FASTDL_ISA_MAX
#define FASTDL_ISA_MAX FASTDL_ISA_LAST
#endif

#ifndef FASTDL_INLINE
#define FASTDL_INLINE static inline __attribute__((always_inline))
#endif

// -DFASTDL_EMULATE_AVX512: what lies above AVX2, AMX included, runs on AVX2 alone, slowly, so that any
// machine tests it. Optimised little: GCC takes minutes for vectors that it must split.
#ifdef FASTDL_EMULATE_AVX512
#define FASTDL_EMULATED (FASTDL_ISA >= FASTDL_ISA_AVX512)
#define FASTDL_TARGET_ABOVE_AVX2(...) \
  _Pragma("GCC optimize(\"O1\")") _Pragma("GCC target(\"avx2,fma,f16c,bmi,bmi2\")")
#else
#define FASTDL_EMULATED 0
#define FASTDL_TARGET_ABOVE_AVX2(...) FASTDL_PRAGMA(GCC target(__VA_ARGS__))
#endif
#define FASTDL_PRAGMA(...) _Pragma(#__VA_ARGS__)

#define FASTDL_ISA FASTDL_ISA_BASELINE
#define FASTDL_VEC_BYTES 16
namespace fastdl::cpu::baseline {
namespace {
#include "common/cpu/vec-inl.h"
#include FASTDL_ISA_SOURCE
}  // namespace
}  // namespace fastdl::cpu::baseline
#undef FASTDL_ISA
#undef FASTDL_VEC_BYTES

#if FASTDL_ISA_MAX >= FASTDL_ISA_AVX2
#define FASTDL_ISA FASTDL_ISA_AVX2
#define FASTDL_VEC_BYTES 32
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
namespace fastdl::cpu::avx2 {
namespace {
#include "common/cpu/vec-inl.h"
#include FASTDL_ISA_SOURCE
}  // namespace
}  // namespace fastdl::cpu::avx2
#pragma GCC pop_options
#undef FASTDL_ISA
#undef FASTDL_VEC_BYTES
#endif

#if FASTDL_ISA_MAX >= FASTDL_ISA_AVX512
#define FASTDL_ISA FASTDL_ISA_AVX512
#define FASTDL_VEC_BYTES 64
#pragma GCC push_options
FASTDL_TARGET_ABOVE_AVX2("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
namespace fastdl::cpu::avx512 {
namespace {
#include "common/cpu/vec-inl.h"
#include FASTDL_ISA_SOURCE
}  // namespace
}  // namespace fastdl::cpu::avx512
#pragma GCC pop_options
#undef FASTDL_ISA
#undef FASTDL_VEC_BYTES
#endif

#if FASTDL_ISA_MAX >= FASTDL_ISA_AVX512BF16
#define FASTDL_ISA FASTDL_ISA_AVX512BF16
#define FASTDL_VEC_BYTES 64
#pragma GCC push_options
FASTDL_TARGET_ABOVE_AVX2(
    "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
namespace fastdl::cpu::avx512bf16 {
namespace {
#include "common/cpu/vec-inl.h"
#include FASTDL_ISA_SOURCE
}  // namespace
}  // namespace fastdl::cpu::avx512bf16
#pragma GCC pop_options
#undef FASTDL_ISA
#undef FASTDL_VEC_BYTES
#endif

#if FASTDL_ISA_MAX >= FASTDL_ISA_AMX
#define FASTDL_ISA FASTDL_ISA_AMX
#define FASTDL_VEC_BYTES 64
#pragma GCC push_options
FASTDL_TARGET_ABOVE_AVX2("amx-tile,amx-bf16",
                         "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2",
                         "prefer-vector-width=512")
namespace fastdl::cpu::amx {
namespace {
#include "common/cpu/vec-inl.h"
#include FASTDL_ISA_SOURCE
}  // namespace
}  // namespace fastdl::cpu::amx
#pragma GCC pop_options
#undef FASTDL_ISA
#undef FASTDL_VEC_BYTES
#endif

namespace fastdl::cpu {
// Picks by rank: each extra instruction set that was not compiled falls back to the one before it.
template <class T>
const T& select_isa(const T* const* tables, int count) {
  const int rank = static_cast<int>(current_isa());
  return *tables[rank < count ? rank : count - 1];
}
}  // namespace fastdl::cpu

#define FASTDL_ISA_TABLES_0(symbol) &fastdl::cpu::baseline::symbol
#define FASTDL_ISA_TABLES_1(symbol) FASTDL_ISA_TABLES_0(symbol), &fastdl::cpu::avx2::symbol
#define FASTDL_ISA_TABLES_2(symbol) FASTDL_ISA_TABLES_1(symbol), &fastdl::cpu::avx512::symbol
#define FASTDL_ISA_TABLES_3(symbol) FASTDL_ISA_TABLES_2(symbol), &fastdl::cpu::avx512bf16::symbol
#define FASTDL_ISA_TABLES_4(symbol) FASTDL_ISA_TABLES_3(symbol), &fastdl::cpu::amx::symbol
#define FASTDL_ISA_TABLES_TO(isa, symbol) FASTDL_ISA_TABLES_##isa(symbol)
#define FASTDL_ISA_TABLES(isa, symbol) FASTDL_ISA_TABLES_TO(isa, symbol)
#define FASTDL_ISA_SELECT(symbol)                                                               \
  ([]() -> const auto& {                                                                        \
    static const decltype(&fastdl::cpu::baseline::symbol) tables[] = {                          \
        FASTDL_ISA_TABLES(FASTDL_ISA_MAX, symbol)};                                             \
    return fastdl::cpu::select_isa(tables, static_cast<int>(sizeof(tables) / sizeof(*tables))); \
  }())
