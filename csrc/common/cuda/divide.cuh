// Division by a number known at launch: a multiplication and a shift instead of about 30 instructions.
#pragma once
#include "common/cuda/device.cuh"

namespace fd {

// Exact for dividends below 2^31 (Granlund and Montgomery 1994, round-up method). 1 <= divisor < 2^31.
struct Divider {
  uint32_t divisor = 1, magic = 0, shift = 0;

  Divider() = default;
  explicit Divider(int64_t d) : divisor(static_cast<uint32_t>(d)) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    magic = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor)) / divisor + 1);
  }
  FD_DEVICE uint32_t quotient(uint32_t n) const { return (__umulhi(n, magic) + n) >> shift; }
  // n becomes n / divisor; returns the remainder.
  FD_DEVICE uint32_t split(uint32_t& n) const {
    uint32_t q = quotient(n), remainder = n - q * divisor;
    n = q;
    return remainder;
  }
};

// Host: items are numbered with 31 bits; what is more is cut into launches of whole samples.
constexpr int64_t kMaxItems = int64_t{1} << 30;

}  // namespace fd
