// Philox4x32-10, host and device: four 32-bit words from a 128-bit counter and a 64-bit key, the same on
// every backend; its twin in plain PyTorch is fastdl/ops/philox.py. Salmon et al. 2011.
#pragma once
#include <cstdint>

#include "common/host_device.h"

namespace fastdl {

struct PhiloxWords {
  uint32_t word[4];
};

FASTDL_HOST_DEVICE inline PhiloxWords philox(PhiloxWords counter, uint64_t seed) {
  uint32_t key_0 = static_cast<uint32_t>(seed), key_1 = static_cast<uint32_t>(seed >> 32);
  uint32_t a = counter.word[0], b = counter.word[1], c = counter.word[2], d = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53u} * a, second = uint64_t{0xCD9E8D57u} * c;
    const uint32_t next_a = static_cast<uint32_t>(second >> 32) ^ b ^ key_0;
    const uint32_t next_c = static_cast<uint32_t>(first >> 32) ^ d ^ key_1;
    b = static_cast<uint32_t>(second);
    d = static_cast<uint32_t>(first);
    a = next_a;
    c = next_c;
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
  return {{a, b, c, d}};
}

// A word as a number in [0, 1), a multiple of 2^-24.
FASTDL_HOST_DEVICE inline float uniform(uint32_t word) {
  return static_cast<float>(word >> 8) * 5.9604644775390625e-8f;
}

// Dropout keeps an element if its word is at least this: with probability 1 - p, p in [0, 1).
FASTDL_HOST_DEVICE inline uint32_t dropout_threshold(double p) {
  return static_cast<uint32_t>(p * 4294967296.0);
}

}  // namespace fastdl
