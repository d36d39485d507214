#include "common/cpu/fingerprint.h"

#include <cstring>
#include <vector>

#define FASTDL_ISA_SOURCE "common/cpu/fingerprint-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

uint64_t fingerprint(const void* data, size_t bytes, const ThreadPool& pool) {
  // 15 us of one core, read from memory.
  constexpr size_t kPart = 256 << 10;
  const auto part_of = FASTDL_ISA_SELECT(kFingerprint)[0];
  const size_t parts = (bytes + kPart - 1) / kPart;
  const uint8_t* begin = static_cast<const uint8_t*>(data);
  std::vector<uint64_t> found(parts);
  parallel_tasks(pool, static_cast<int64_t>(parts), [&](int64_t part, int64_t) {
    const size_t at = static_cast<size_t>(part) * kPart, left = bytes - at;
    found[static_cast<size_t>(part)] = part_of(begin + at, static_cast<int64_t>(left < kPart ? left : kPart));
  });
  uint64_t hash = bytes;
  for (const uint64_t each : found) hash = (hash ^ each) * 0x9e3779b97f4a7c15u, hash ^= hash >> 32;
  return hash;
}

}  // namespace fastdl::cpu
