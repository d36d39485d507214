// Shared memory: filled with 0xFF (NaN in every float type, -1 in integers) when a block starts.
#pragma once
#include <cstdlib>
#include <cstring>

#include "emulation/state.h"

namespace emu {

inline SharedArray allocate_shared(size_t bytes) {
  void* data;
  if (posix_memalign(&data, 128, bytes)) abort();
  memset(data, 0xFF, bytes);
  return {static_cast<char*>(data), bytes};
}

inline void* static_shared(Block* block, const void* key, size_t bytes) {
  EMU_QUIET SharedArray& array = block->static_shared[key];
  if (!array.data) array = allocate_shared(bytes);
  return array.data;
}

// The same variable in another block of the cluster.
inline void* peer_shared(void* p, unsigned rank, Site site) {
  EMU_QUIET Block* block = self->block;
  if (rank >= block->cluster->blocks.size()) {
    fail("map_shared_rank: no such block in the cluster", site);
    return p;
  }
  Block* peer = block->cluster->blocks[rank];
  if (peer != block && block->cluster->barrier.phase == 0)
    fail("distributed shared memory before the first cluster.sync: the other block may not have started",
         site);
  if (peer->barrier.live == 0) fail("distributed shared memory of a block that has exited", site);
  auto holds = [&](SharedArray& a) { return a.data <= p && static_cast<char*>(p) < a.data + a.bytes; };
  if (holds(block->dynamic_shared))
    return peer->dynamic_shared.data + (static_cast<char*>(p) - block->dynamic_shared.data);
  for (auto& [key, array] : block->static_shared)
    if (holds(array))
      return static_cast<char*>(static_shared(peer, key, array.bytes)) + (static_cast<char*>(p) - array.data);
  fail("map_shared_rank: not a shared-memory address", site);
  return p;
}

// Where dynamic shared memory begins in the window of its block: on no larger boundary than CUDA promises.
constexpr unsigned kFirstShared = 1024 + 128;

inline unsigned shared_address(const void* p, Site site) {
  EMU_QUIET const SharedArray& array = self->block->dynamic_shared;
  const char* at = static_cast<const char*>(p);
  if (at >= array.data && at < array.data + array.bytes)
    return kFirstShared + static_cast<unsigned>(at - array.data);
  fail("not an address of dynamic shared memory", site);
  return 0;
}

// The 16 bytes at an address of the window; null outside.
inline char* shared_chunk(unsigned address, Site site) {
  const SharedArray& array = self->block->dynamic_shared;
  if (address >= kFirstShared && address - kFirstShared + 16 <= array.bytes)
    return array.data + (address - kFirstShared);
  fail("outside of dynamic shared memory", site);
  return nullptr;
}

// Swizzling by 128 bytes: the chunk within a row of 128 bytes changes with the row, by absolute address.
inline unsigned swizzle_128(unsigned address) { return address ^ (address >> 7 & 7) << 4; }

}  // namespace emu

#define FD_SHARED(T, name, dims)    \
  using name##_type = T dims;       \
  static const char name##_key = 0; \
  name##_type& name =               \
      *static_cast<name##_type*>(emu::static_shared(emu::self->block, &name##_key, sizeof(name##_type)))
#define FD_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emu::self->block->dynamic_shared.data)
