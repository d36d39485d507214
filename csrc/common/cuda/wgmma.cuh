// Tensor cores by wgmma (sm_90a): a warpgroup, four warps from a multiple of four on, multiplies 64 rows
// while it does something else. Sums have the layout of mma.sync, warp w of the warpgroup holds rows 16 w and
// on. fence, multiply, commit, wait: registers belong to the tensor cores from the fence to the wait.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace fd {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FD_SM90A(instruction) instruction
#else
#define FD_SM90A(instruction) __trap()
#endif

// What needs sm_90a has ends here elsewhere; nothing behind it is compiled.
FD_DEVICE void needs_sm90a() {
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __trap();
  __builtin_unreachable();
#endif
}

// A warpgroup gives registers back, or takes them: a thread of it has kCount from here on.
template <int kCount>
FD_DEVICE void fewer_registers() {
  FD_SM90A(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount)));
}
template <int kCount>
FD_DEVICE void more_registers() {
  FD_SM90A(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount)));
}

// The compiler moves no use of the sums across.
template <int kTiles>
FD_DEVICE void hold(float (&d)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[n][e])::"memory");
}

// Before the first product of a group: what threads wrote into its registers is there.
template <int kTiles>
FD_DEVICE void wgmma_fence(float (&d)[kTiles][4]) {
  hold(d);
  FD_SM90A(asm volatile("wgmma.fence.sync.aligned;" :: : "memory"));
}
FD_DEVICE void wgmma_commit() { FD_SM90A(asm volatile("wgmma.commit_group.sync.aligned;" :: : "memory")); }
// Until at most kLeft groups are under way. `d`: sums of one that is not.
template <int kLeft, int kTiles>
FD_DEVICE void wgmma_wait(float (&d)[kTiles][4]) {
  FD_SM90A(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory"));
  hold(d);
}

#define FD_FOUR(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define FD_SUMS_8(d)                                                                                       \
  FD_FOUR(d, 0), FD_FOUR(d, 1), FD_FOUR(d, 2), FD_FOUR(d, 3), FD_FOUR(d, 4), FD_FOUR(d, 5), FD_FOUR(d, 6), \
      FD_FOUR(d, 7)
#define FD_SUMS_16(d)                                                                         \
  FD_SUMS_8(d), FD_FOUR(d, 8), FD_FOUR(d, 9), FD_FOUR(d, 10), FD_FOUR(d, 11), FD_FOUR(d, 12), \
      FD_FOUR(d, 13), FD_FOUR(d, 14), FD_FOUR(d, 15)
#define FD_NAMES_8                                        \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15" \
  ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define FD_NAMES_16                                                  \
  FD_NAMES_8                                                         \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
  ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define FD_TRANSPOSED(types)                                                             \
  FD_SM90A(                                                                              \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"                            \
                   "wgmma.mma_async.sync.aligned.m64n128k16.f32." types " {" FD_NAMES_16 \
                   "}, %64, %65, p, 1, 1, 0, 0; }" : FD_SUMS_16(d) : "l"(left),          \
                   "l"(right), "r"(static_cast<int>(add)) : "memory"))
#define FD_FRAGMENTS(shape, types, names, sums, a0, a1, a2, a3, b)                                           \
  FD_SM90A(                                                                                                  \
      asm volatile("{ .reg .pred p; setp.eq.b32 p, 0, 0;\n"                                                  \
                   "wgmma.mma_async.sync.aligned." shape "k16.f32." types " {" names "}, {" a0 "," a1 "," a2 \
                   "," a3 "}, " b ", p, 1, 1, 1; }" : sums : "r"(left[0]),                                   \
                   "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right) : "memory"))

// Element: __half or __nv_bfloat16. left: 64 rows of 16 columns, right: 128 rows of 16 columns, transposed.
// Not `add`: what the sums were does not count.
template <class Element>
FD_DEVICE void wgmma_transposed(float (&d)[16][4], uint64_t left, uint64_t right, bool add) {
  if constexpr (std::is_same_v<Element, __half>)
    FD_TRANSPOSED("f16.f16");
  else
    FD_TRANSPOSED("bf16.bf16");
}

// left: this warp's 16 rows of 16 columns, as mma.sync takes them; right: 16 rows of 64 or 128 columns.
template <class Element, int kTiles>
FD_DEVICE void wgmma(float (&d)[kTiles][4], const uint32_t (&left)[4], uint64_t right) {
  static_assert(kTiles == 8 || kTiles == 16);
  constexpr bool kHalf = std::is_same_v<Element, __half>;
  if constexpr (kTiles == 8 && kHalf)
    FD_FRAGMENTS("m64n64", "f16.f16", FD_NAMES_8, FD_SUMS_8(d), "%32", "%33", "%34", "%35", "%36");
  else if constexpr (kTiles == 8)
    FD_FRAGMENTS("m64n64", "bf16.bf16", FD_NAMES_8, FD_SUMS_8(d), "%32", "%33", "%34", "%35", "%36");
  else if constexpr (kHalf)
    FD_FRAGMENTS("m64n128", "f16.f16", FD_NAMES_16, FD_SUMS_16(d), "%64", "%65", "%66", "%67", "%68");
  else
    FD_FRAGMENTS("m64n128", "bf16.bf16", FD_NAMES_16, FD_SUMS_16(d), "%64", "%65", "%66", "%67", "%68");
}
#undef FD_FOUR
#undef FD_SUMS_8
#undef FD_SUMS_16
#undef FD_NAMES_8
#undef FD_NAMES_16
#undef FD_TRANSPOSED
#undef FD_FRAGMENTS
#undef FD_SM90A

}  // namespace fd
