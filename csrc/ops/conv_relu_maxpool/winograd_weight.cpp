#include "ops/conv_relu_maxpool/winograd_weight.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

namespace fastdl::cpu {
namespace {

constexpr size_t kMostEntries = 64, kMostBytes = size_t{256} << 20;

struct Entry {
  PackableWeight weight;
  std::vector<uint8_t> original;
  std::shared_ptr<float> packed;
  size_t bytes;  // of both
};

// Most recently used last.
struct Cache {
  std::mutex mutex;
  std::vector<std::shared_ptr<const Entry>> entries;
};

// Never destroyed: a thread may still run a kernel while the process ends.
Cache& cache() {
  static Cache* const instance = new Cache;
  return *instance;
}

std::shared_ptr<const Entry> find(const PackableWeight& wanted) {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  for (auto it = c.entries.begin(); it != c.entries.end(); ++it) {
    if (!((*it)->weight == wanted)) continue;
    std::rotate(it, it + 1, c.entries.end());
    return c.entries.back();
  }
  return nullptr;
}

void keep(std::shared_ptr<const Entry> entry) {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  c.entries.erase(
      std::remove_if(c.entries.begin(), c.entries.end(),
                     [&](const std::shared_ptr<const Entry>& e) { return e->weight == entry->weight; }),
      c.entries.end());
  c.entries.push_back(std::move(entry));
  size_t bytes = 0;
  for (const auto& e : c.entries) bytes += e->bytes;
  auto first = c.entries.begin();
  for (; bytes > kMostBytes || c.entries.end() - first > static_cast<std::ptrdiff_t>(kMostEntries); ++first)
    bytes -= (*first)->bytes;
  c.entries.erase(c.entries.begin(), first);
}

}  // namespace

std::shared_ptr<const float> cached_packed_weight(
    const PackableWeight& weight, size_t floats,
    const std::function<void(const void* weight, float* u)>& pack) {
  const size_t plain_bytes =
      static_cast<size_t>(weight.K * weight.C * 9) * (weight.dtype == DType::kFloat32 ? 4 : 2);
  const size_t packed_bytes = (floats * sizeof(float) + 63) / 64 * 64;
  if (plain_bytes + packed_bytes > kMostBytes / 2) return nullptr;
  if (const auto kept = find(weight);
      kept && std::memcmp(kept->original.data(), weight.data, plain_bytes) == 0)
    return kept->packed;

  auto made = std::make_shared<Entry>(Entry{weight, {}, nullptr, plain_bytes + packed_bytes});
  const uint8_t* begin = static_cast<const uint8_t*>(weight.data);
  made->original.assign(begin, begin + plain_bytes);
  made->packed.reset(static_cast<float*>(std::aligned_alloc(64, packed_bytes)), std::free);
  if (!made->packed) throw std::bad_alloc();
  // From the copy: the packed weight belongs to these very bytes, whatever happens to the tensor meanwhile.
  pack(made->original.data(), made->packed.get());
  keep(made);
  return made->packed;
}

}  // namespace fastdl::cpu
