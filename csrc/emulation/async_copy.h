// cp.async, bulk copies and memory barriers; the twins of common/cuda/async_copy.cuh.
#pragma once
#include "emulation/shared_memory.h"

namespace emu {

inline void land(const Copy& copy) {
  memset(copy.to, 0, copy.bytes);
  if (copy.valid) memcpy(copy.to, copy.from, copy.valid);
}

inline MemoryBarrier& memory_barrier(uint64_t* p, Site site) {
  auto& all = self->block->memory_barriers;
  auto found = all.find(p);
  if (found != all.end()) return found->second;
  fail("mbarrier used before init", site);
  return all.emplace(p, MemoryBarrier{1, 1}).first->second;
}

inline void advance_if_complete(MemoryBarrier& barrier) {
  if (barrier.pending || barrier.bytes) return;
  barrier.pending = barrier.count;
  ++barrier.phase;
}

// Copies whose bytes arrive at a memory barrier.
inline void begin_copies(const std::vector<Copy>& copies, uint64_t* p, Site site) {
  EMU_TSAN(for (const Copy& copy : copies) {
    __tsan_write_range(copy.to, copy.bytes);
    if (copy.valid) __tsan_read_range((void*)copy.from, copy.valid);
  })
  EMU_QUIET MemoryBarrier& barrier = memory_barrier(p, site);
  self->site = site;
  for (const Copy& copy : copies) {
    if (machine.copies_land_early) {
      land(copy);
      barrier.bytes -= copy.bytes;
    } else {
      barrier.copies.push_back(copy);
    }
  }
  EMU_RELEASE(&barrier.token[barrier.phase & 1]);
  advance_if_complete(barrier);
}

}  // namespace emu

namespace fd {

inline unsigned shared_address(const void* p, EMU_SITE) { return emu::shared_address(p, {file, line}); }

// The bytes land at once in odd schedules, in cp_async_wait (as late as allowed) in even ones.
// ThreadSanitizer sees a write at both ends.
inline void cp_async16(void* to, const void* from, bool valid = true, EMU_SITE) {
  if ((reinterpret_cast<uintptr_t>(to) | (valid ? reinterpret_cast<uintptr_t>(from) : 0)) & 15)
    emu::fail("cp.async: misaligned address", {file, line});
  emu::Copy copy{to, from, 16, valid ? 16 : 0};
  EMU_TSAN(__tsan_write_range(to, 16); if (valid) __tsan_read_range((void*)from, 16);)
  emu::self->site = {file, line};
  if (emu::machine.copies_land_early) {
    emu::land(copy);
  } else {
    emu::self->open_copies.push_back(copy);
    emu::self->copy_site = {file, line};
  }
}
inline void cp_async_commit() {
  emu::self->copy_groups.push_back(std::move(emu::self->open_copies));
  emu::self->open_copies.clear();
}
template <int kLeft>
void cp_async_wait() {
  auto& groups = emu::self->copy_groups;
  for (; static_cast<int>(groups.size()) > kLeft; groups.erase(groups.begin()))
    for (const emu::Copy& copy : groups.front()) emu::land(copy);
}

inline void mbarrier_init(uint64_t* p, int count) {
  EMU_QUIET emu::self->block->memory_barriers[p] = emu::MemoryBarrier{count, count};
}
// bytes > 0: arrive.expect_tx
inline void mbarrier_arrive(uint64_t* p, int bytes = 0, EMU_SITE) {
  EMU_QUIET auto& barrier = emu::memory_barrier(p, {file, line});
  EMU_RELEASE(&barrier.token[barrier.phase & 1]);
  if (--barrier.pending < 0) emu::fail("mbarrier: more arrivals than its count", {file, line});
  barrier.bytes += bytes;
  emu::advance_if_complete(barrier);
}
inline void bulk_copy(void* to, const void* from, int bytes, uint64_t* p, EMU_SITE) {
  {
    EMU_QUIET if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | unsigned(bytes)) &
                  15) emu::fail("cp.async.bulk: misaligned address or size", {file, line});
  }
  emu::begin_copies({{to, from, bytes, bytes}}, p, {file, line});
}
// Late copies land here, when somebody waits for them, and not before.
inline void mbarrier_wait(uint64_t* p, int parity, EMU_SITE) {
  emu::MemoryBarrier* barrier;
  {
    EMU_QUIET barrier = &emu::memory_barrier(p, {file, line});
  }
  emu::self->site = {file, line};
  while ((barrier->phase & 1) == parity) {
    if (!barrier->copies.empty()) EMU_ACQUIRE(&barrier->token[barrier->phase & 1]);
    for (const emu::Copy& copy : barrier->copies) {
      emu::land(copy);
      barrier->bytes -= copy.bytes;
    }
    EMU_QUIET if (barrier->copies.empty()) { emu::spin(); }
    else {
      barrier->copies.clear();
      EMU_RELEASE(&barrier->token[barrier->phase & 1]);
      emu::advance_if_complete(*barrier);
    }
  }
  EMU_ACQUIRE(&barrier->token[parity]);
}

}  // namespace fd
