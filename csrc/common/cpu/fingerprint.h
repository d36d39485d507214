// 64 bits that tell whether bytes in memory have changed: what was made of them can be kept as long as not.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/cpu/parallel.h"

namespace fastdl::cpu {

// A change of one element is always seen: every step is a bijection of its lane's state. Several changes by
// chance go unseen with a probability of 2^-64. For equal bytes the same on every instruction set but for the
// width of a vector: compare what one process has computed.
uint64_t fingerprint(const void* data, size_t bytes, const ThreadPool& pool);

}  // namespace fastdl::cpu
