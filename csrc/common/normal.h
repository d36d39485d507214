// Two standard normal deviates from two 32-bit words, host and device: the same on every backend within an
// ulp or two; its twin in plain PyTorch is fastdl/ops/normal.py. Box and Muller 1958; polynomials of Cephes.
#pragma once
#include <cmath>
#include <cstring>

#include "common/philox.h"

namespace fastdl {

// ln u for u in [2^-33, 1].
FASTDL_HOST_DEVICE inline float log_of_uniform(float u) {
  int32_t bits;
  memcpy(&bits, &u, 4);
  // u = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2))
  const int32_t shifted = bits - 0x3f3504f3, e = shifted >> 23;
  const int32_t mantissa = (shifted & 0x7fffff) + 0x3f3504f3;
  float f;
  memcpy(&f, &mantissa, 4);
  f -= 1.0f;
  float p = fmaf(f, 7.0376836292e-2f, -1.1514610310e-1f);
  p = fmaf(f, p, 1.1676998740e-1f);
  p = fmaf(f, p, -1.2420140846e-1f);
  p = fmaf(f, p, 1.4249322787e-1f);
  p = fmaf(f, p, -1.6668057665e-1f);
  p = fmaf(f, p, 2.0000714765e-1f);
  p = fmaf(f, p, -2.4999993993e-1f);
  p = fmaf(f, p, 3.3333331174e-1f);
  const float square = f * f, exponent = static_cast<float>(e);
  const float tail = fmaf(-0.5f, square, fmaf(exponent, -2.12194440e-4f, f * square * p));
  return fmaf(exponent, 0.693359375f, f + tail);
}

// The angle is second / 2^32 of a turn: a quarter, and a rest within an eighth of a turn on either side.
FASTDL_HOST_DEVICE inline void box_muller(uint32_t first, uint32_t second, float& cosine, float& sine) {
  const float u = fmaf(static_cast<float>(first), 2.3283064365386963e-10f, 1.1641532182693481e-10f);
  const float radius = sqrtf(-2.0f * log_of_uniform(u));
  const uint32_t quarter = (second + 0x20000000u) >> 30;
  const float x = static_cast<float>(static_cast<int32_t>(second - (quarter << 30))) * 1.4629180792671596e-9f;
  const float z = x * x;
  float s = fmaf(z, -1.9515295891e-4f, 8.3321608736e-3f);
  s = fmaf(z, s, -1.6666654611e-1f);
  s = fmaf(x * z, s, x);
  float c = fmaf(z, 2.443315711809948e-5f, -1.388731625493765e-3f);
  c = fmaf(z, c, 4.166664568298827e-2f);
  c = fmaf(z * z, c, fmaf(-0.5f, z, 1.0f));
  const float across = quarter & 1 ? s : c, along = quarter & 1 ? c : s;
  cosine = radius * ((quarter + 1) & 2 ? -across : across);
  sine = radius * (quarter & 2 ? -along : along);
}

// The four deviates of counter (block, offset): elements 4 block .. 4 block + 3 of a tensor in memory order.
FASTDL_HOST_DEVICE inline void normals(uint64_t block, uint64_t seed, uint64_t offset, float (&out)[4]) {
  const PhiloxWords w = philox({{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                                 static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32)}},
                               seed);
  box_muller(w.word[0], w.word[1], out[0], out[1]);
  box_muller(w.word[2], w.word[3], out[2], out[3]);
}

}  // namespace fastdl
