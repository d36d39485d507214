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
  const void* weight;
  int64_t K, C;
  DType dtype;
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

bool same_key(const Entry& a, const Entry& b) {
  return a.weight == b.weight && a.K == b.K && a.C == b.C && a.dtype == b.dtype;
}

std::shared_ptr<const Entry> find(const Entry& wanted) {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  for (auto it = c.entries.begin(); it != c.entries.end(); ++it) {
    if (!same_key(**it, wanted)) continue;
    std::rotate(it, it + 1, c.entries.end());
    return c.entries.back();
  }
  return nullptr;
}

void keep(std::shared_ptr<const Entry> entry) {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  c.entries.erase(std::remove_if(c.entries.begin(), c.entries.end(),
                                 [&](const std::shared_ptr<const Entry>& e) { return same_key(*e, *entry); }),
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
    const void* weight, int64_t K, int64_t C, DType dtype, size_t floats,
    const std::function<void(const void* weight, float* u)>& pack) {
  const size_t plain_bytes = static_cast<size_t>(K * C * 9) * (dtype == DType::kFloat32 ? 4 : 2);
  const size_t packed_bytes = (floats * sizeof(float) + 63) / 64 * 64;
  if (plain_bytes + packed_bytes > kMostBytes / 2) return nullptr;
  auto made = std::make_shared<Entry>(Entry{weight, K, C, dtype, {}, nullptr, plain_bytes + packed_bytes});
  if (const auto kept = find(*made); kept && std::memcmp(kept->original.data(), weight, plain_bytes) == 0)
    return kept->packed;

  const uint8_t* begin = static_cast<const uint8_t*>(weight);
  made->original.assign(begin, begin + plain_bytes);
  made->packed.reset(static_cast<float*>(std::aligned_alloc(64, packed_bytes)), std::free);
  if (!made->packed) throw std::bad_alloc();
  // From the copy: the packed weight belongs to these very bytes, whatever happens to the tensor meanwhile.
  pack(made->original.data(), made->packed.get());
  keep(made);
  return made->packed;
}

}  // namespace fastdl::cpu
