// Packed weights kept between calls, for inference: used only while the plain weight's bytes are those they
// were made of.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "common/dtype.h"

namespace fastdl::cpu {

// A dense weight [K, C, 3, 3].
struct PackableWeight {
  const void* data;
  int64_t K, C;
  DType dtype;
  bool channels_last;

  bool operator==(const PackableWeight& other) const {
    return data == other.data && K == other.K && C == other.C && dtype == other.dtype &&
           channels_last == other.channels_last;
  }
};

// pack(weight, u) fills u[floats] from the plain weight, or from an equal copy of it. Returns the filled u,
// null where it would not fit the cache. Any thread may call; what was returned stays valid, and is dropped
// least recently used first. Throws std::bad_alloc.
std::shared_ptr<const float> cached_packed_weight(
    const PackableWeight& weight, size_t floats,
    const std::function<void(const void* weight, float* u)>& pack);

}  // namespace fastdl::cpu
