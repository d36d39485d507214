// Block, named, grid and cluster barriers, fences, flags, atomics; the twins of
// common/cuda/synchronization.cuh.
#pragma once
#include "emulation/barrier.h"
#include "emulation/shared_memory.h"

inline void __syncthreads(EMU_SITE) {
  emu::Barrier& barrier = emu::self->block->barrier;
  emu::wait_at(barrier, barrier.live, {file, line});
}
inline void __threadfence() {
  EMU_ACQUIRE(&emu::machine.fence_token);
  EMU_RELEASE(&emu::machine.fence_token);
}
template <class T>
T atomicAdd(T* p, T value) {
  T before, after;
  __atomic_load(p, &before, __ATOMIC_RELAXED);
  do {
    after = before + value;
  } while (!__atomic_compare_exchange(p, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

namespace fd {

inline void grid_sync(EMU_SITE) {
  if (!emu::machine.cooperative) emu::fail("grid sync without a cooperative launch", {file, line});
  emu::wait_at(emu::machine.grid_barrier, emu::machine.grid_barrier.live, {file, line});
}
// `threads` of the block, possibly from different lines.
inline void named_barrier(int id, int threads, EMU_SITE) {
  emu::Barrier* barrier;
  {
    EMU_QUIET barrier =
        &emu::self->block->named.try_emplace(id, emu::Barrier{"named barrier", false}).first->second;
  }
  emu::wait_at(*barrier, threads, {file, line});
}
inline unsigned cluster_rank() { return emu::self->block->rank; }
inline unsigned cluster_size() { return emu::self->block->cluster->blocks.size(); }
inline void cluster_sync(EMU_SITE) {
  emu::Barrier& barrier = emu::self->block->cluster->barrier;
  emu::wait_at(barrier, barrier.live, {file, line});
}
inline void cluster_arrive(EMU_SITE) {
  emu::Barrier& barrier = emu::self->block->cluster->barrier;
  emu::arrive_at(barrier, barrier.live, {file, line});
}
inline void cluster_wait(EMU_SITE) { emu::wait_for(emu::self->block->cluster->barrier, {file, line}); }
template <class T>
T* cluster_map(T* p, unsigned rank, EMU_SITE) {
  return static_cast<T*>(emu::peer_shared(p, rank, {file, line}));
}
// Flags in global memory: a loop on ld_acquire must call spin().
template <class T>
T ld_acquire(const T* p) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
template <class T>
void st_release(T* p, T value) {
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
}
inline void add_release(unsigned* p, unsigned value) { __atomic_fetch_add(p, value, __ATOMIC_RELEASE); }
inline void spin() { emu::spin(); }

}  // namespace fd
