// ldmatrix and mma.sync, the twins of common/cuda/mma.cuh; fragment layouts as in the PTX manual.
// Sums are fp32 in the order of k: real tensor cores add in an order of their own.
#pragma once
#include "emulation/warp.h"

namespace emu {

template <class Element>
struct Fragment;
template <>
struct Fragment<__nv_bfloat16> {
  static constexpr int kPerRegister = 2;
  static float get(uint32_t bits, int half) {
    bits = (half ? bits >> 16 : bits) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }
};
template <>
struct Fragment<__half> {
  static constexpr int kPerRegister = 2;
  static float get(uint32_t bits, int half) {
    __half_raw raw;
    raw.x = static_cast<unsigned short>(half ? bits >> 16 : bits);
    return __half2float(__half(raw));
  }
};
template <>
struct Fragment<float> {  // tf32: the low 13 bits are ignored
  static constexpr int kPerRegister = 1;
  static float get(uint32_t bits, int) {
    bits &= 0xffffe000u;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }
};

// m16n8k(8 * kPerRegister)
template <class Element>
void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  struct Arguments {
    float* d;
    const uint32_t *a, *b;
  } arguments{d, a, b};
  warp_collective(
      ~0u, arguments,
      [](Arguments** all) {
        constexpr int n = Fragment<Element>::kPerRegister, kDepth = 8 * n;
        float left[16][kDepth], right[kDepth][8];
        for (int lane = 0; lane < 32; ++lane)
          for (int half = 0; half < n; ++half) {
            int group = lane / 4, k = lane % 4 * n + half;
            for (int i = 0; i < 4; ++i)
              left[group + 8 * (i & 1)][k + 4 * n * (i >> 1)] = Fragment<Element>::get(all[lane]->a[i], half);
            for (int i = 0; i < 2; ++i)
              right[k + 4 * n * i][group] = Fragment<Element>::get(all[lane]->b[i], half);
          }
        for (int lane = 0; lane < 32; ++lane)
          for (int i = 0; i < 4; ++i) {
            int row = lane / 4 + 8 * (i >> 1), column = lane % 4 * 2 + (i & 1);
            for (int k = 0; k < kDepth; ++k) all[lane]->d[i] += left[row][k] * right[k][column];
          }
      },
      site);
}

}  // namespace emu

namespace fd {

inline void needs_sm80() {}

// Each lane reads its own row, so that the sanitizers see who read.
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, bool transpose = false, EMU_SITE) {
  struct Arguments {
    uint16_t row[8];
    uint32_t* r;
    bool transpose;
  } arguments{{}, r, transpose};
  if (reinterpret_cast<uintptr_t>(row) & 15)
    emu::fail("ldmatrix: misaligned address", {file, line});
  else
    for (int i = 0; i < 8; ++i) arguments.row[i] = static_cast<const uint16_t*>(row)[i];
  emu::warp_collective(~0u, arguments,
                       [](Arguments** all) {
                         for (int m = 0; m < 4; ++m)
                           for (int lane = 0; lane < 32; ++lane) {
                             uint32_t half[2];
                             for (int k = 0; k < 2; ++k) {
                               int y = lane / 4, x = lane % 4 * 2 + k;
                               half[k] =
                                   all[lane]->transpose ? all[m * 8 + x]->row[y] : all[m * 8 + y]->row[x];
                             }
                             all[lane]->r[m] = half[0] | half[1] << 16;
                           }
                       },
                       {file, line});
}

template <class Element>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_SITE) {
  emu::multiply_accumulate<Element>(d, a, b, {file, line});
}

// cvt.rna.tf32.f32: to the nearest value of 10 mantissa bits, ties away from zero.
inline uint32_t round_to_tf32(uint32_t bits) {
  bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return finite ? (bits + 0x1000u) & 0xffffe000u : bits;
}

}  // namespace fd
