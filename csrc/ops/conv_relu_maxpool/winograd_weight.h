// Packed weights kept between calls, for inference: used only while the plain weight's bytes are those they
// were made of.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "common/cpu/parallel.h"
#include "common/dtype.h"

namespace fastdl::cpu {

// A dense weight [K, C, 3, 3], and the outputs of a tile, each way, that it is packed for.
struct PackableWeight {
  const void* data;
  int64_t K, C, tile;
  DType dtype;
  bool channels_last;

  bool operator==(const PackableWeight& other) const {
    return data == other.data && K == other.K && C == other.C && tile == other.tile && dtype == other.dtype &&
           channels_last == other.channels_last;
  }
};

// pack(copy, u) fills u[floats] from an equal copy of the plain weight. Returns the filled u, null where
// there is no room: what is in use stays, so that a network larger than the cache keeps a part of it. Any
// thread may call; what was returned stays valid. Throws std::bad_alloc.
std::shared_ptr<const float> cached_packed_weight(
    const PackableWeight& weight, size_t floats, const ThreadPool& pool,
    const std::function<void(const PackableWeight& copy, float* u)>& pack);

}  // namespace fastdl::cpu
