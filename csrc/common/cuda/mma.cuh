// Tensor cores by mma.sync: d[16x8] += a[16x(32 bytes)] * b[(32 bytes)x8], fp32 sums.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace fd {

// What needs more than sm_75 has ends here there; nothing behind it is compiled.
FD_DEVICE void needs_sm80() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();
  __builtin_unreachable();
#endif
}

// Four 8x8 matrices of 16-bit elements (or 8x4 of 32-bit ones); lane i gives the address of row i % 8 of
// matrix i / 8.
FD_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row, bool transpose = false) {
  if (transpose)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

#define FD_MMA(types, d, a, b)                                                                    \
  asm volatile("mma.sync.aligned." types " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// Element: __half and __nv_bfloat16 (m16n8k16), float (m16n8k8 in tf32). Before sm_80 only __half.
template <class Element>
FD_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
FD_DEVICE void mma<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  for (int k = 0; k < 2; ++k)
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
#else
  FD_MMA("m16n8k16.row.col.f32.f16.f16.f32", d, a, b);
#endif
}

template <>
FD_DEVICE void mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();
#else
  FD_MMA("m16n8k16.row.col.f32.bf16.bf16.f32", d, a, b);
#endif
}

template <>
FD_DEVICE void mma<float>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();
#else
  FD_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", d, a, b);
#endif
}
#undef FD_MMA

// To the nearest value of 10 mantissa bits, ties away from zero; unrounded, the tensor core would truncate.
FD_DEVICE uint32_t round_to_tf32(uint32_t bits) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();
  return bits;
#else
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
#endif
}

}  // namespace fd
