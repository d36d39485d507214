#include "ops/conv_relu_maxpool/winograd_weight.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

namespace fastdl::cpu {
namespace {

constexpr size_t kMostBytes = size_t{512} << 20;
// A kept weight that was not asked for in so many lookups makes room: no network has as many convolutions.
constexpr uint64_t kStaleLookups = 1024;
// 0.1 ms of one core.
constexpr size_t kCompareBytes = 1 << 20;

struct Entry {
  PackableWeight weight;
  std::vector<uint8_t> original;
  std::shared_ptr<float> packed;
  size_t bytes;  // of both
  uint64_t last_lookup;
};

struct Cache {
  std::mutex mutex;
  std::vector<std::shared_ptr<Entry>> entries;
  uint64_t lookups = 0;
};

// Never destroyed: a thread may still run a kernel while the process ends.
Cache& cache() {
  static Cache* const instance = new Cache;
  return *instance;
}

std::shared_ptr<const Entry> find(const PackableWeight& wanted) {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  ++c.lookups;
  for (const auto& entry : c.entries)
    if (entry->weight == wanted) {
      entry->last_lookup = c.lookups;
      return entry;
    }
  return nullptr;
}

// Whether `bytes` more for a weight fit, once what is stale or was made of other bytes of it is gone.
bool make_room(Cache& c, const PackableWeight& weight, size_t bytes) {
  c.entries.erase(std::remove_if(c.entries.begin(), c.entries.end(),
                                 [&](const std::shared_ptr<Entry>& e) { return e->weight == weight; }),
                  c.entries.end());
  size_t held = 0;
  for (const auto& e : c.entries) held += e->bytes;
  if (held + bytes <= kMostBytes) return true;
  held = 0;
  c.entries.erase(std::remove_if(c.entries.begin(), c.entries.end(),
                                 [&](const std::shared_ptr<Entry>& e) {
                                   return c.lookups - e->last_lookup > kStaleLookups;
                                 }),
                  c.entries.end());
  for (const auto& e : c.entries) held += e->bytes;
  return held + bytes <= kMostBytes;
}

bool is_room_for(const PackableWeight& weight, size_t bytes) {
  const std::lock_guard<std::mutex> lock(cache().mutex);
  return make_room(cache(), weight, bytes);
}

void keep(std::shared_ptr<Entry> entry) {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  // asked again: another thread may have been faster
  if (!make_room(c, entry->weight, entry->bytes)) return;
  entry->last_lookup = c.lookups;
  c.entries.push_back(std::move(entry));
}

// A large weight, read from memory, takes as long as a tenth of its convolution: by all threads.
bool same_bytes(const uint8_t* a, const uint8_t* b, size_t bytes, const ThreadPool& pool) {
  std::atomic<bool> same{true};
  const size_t parts = (bytes + kCompareBytes - 1) / kCompareBytes;
  parallel_tasks(pool, static_cast<int64_t>(parts), [&](int64_t part, int64_t) {
    const size_t at = static_cast<size_t>(part) * kCompareBytes;
    if (std::memcmp(a + at, b + at, std::min(kCompareBytes, bytes - at)) != 0)
      same.store(false, std::memory_order_relaxed);
  });
  return same;
}

}  // namespace

std::shared_ptr<const float> cached_packed_weight(
    const PackableWeight& weight, size_t floats, const ThreadPool& pool,
    const std::function<void(const PackableWeight& copy, float* u)>& pack) {
  const size_t plain_bytes =
      static_cast<size_t>(weight.K * weight.C * 9) * (weight.dtype == DType::kFloat32 ? 4 : 2);
  const size_t packed_bytes = (floats * sizeof(float) + 63) / 64 * 64;
  const uint8_t* begin = static_cast<const uint8_t*>(weight.data);
  if (const auto kept = find(weight); kept && same_bytes(kept->original.data(), begin, plain_bytes, pool))
    return kept->packed;
  if (!is_room_for(weight, plain_bytes + packed_bytes)) return nullptr;

  auto made = std::make_shared<Entry>(Entry{weight, {}, nullptr, plain_bytes + packed_bytes, 0});
  made->original.assign(begin, begin + plain_bytes);
  made->packed.reset(static_cast<float*>(std::aligned_alloc(64, packed_bytes)), std::free);
  if (!made->packed) throw std::bad_alloc();
  // From the copy: the packed weight belongs to these very bytes, whatever happens to the tensor meanwhile.
  PackableWeight copy = weight;
  copy.data = made->original.data();
  pack(copy, made->packed.get());
  keep(made);
  return made->packed;
}

}  // namespace fastdl::cpu
