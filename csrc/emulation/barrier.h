// Block, named, cluster and grid barriers.
#pragma once
#include "emulation/fiber.h"

namespace emu {

EMU_UNTRACKED inline void open_barrier(Barrier& barrier) {
  Thread* first = nullptr;
  for (Block& block : *machine.blocks)
    for (Thread& thread : block.threads) {
      if (thread.status != Status::kInBarrier || thread.barrier != &barrier) continue;
      if (!first) first = &thread;
      if (barrier.one_site && (thread.site.line != first->site.line || thread.site.file != first->site.file))
        fail("divergent barrier: threads wait at different lines", thread.site, &thread);
      thread.status = Status::kReady;
    }
  barrier.waiting = 0;
  ++barrier.phase;
}

EMU_UNTRACKED inline void wait_at(Barrier& barrier, int needed, Site site) {
  EMU_QUIET char* token = &barrier.token[barrier.phase & 1];
  (void)token;
  self->site = site;
  self->barrier = &barrier;
  self->status = Status::kInBarrier;
  EMU_RELEASE(token);
  if (barrier.live < barrier.all && !options.early_exit)
    fail(std::string(barrier.name) + " after some threads have returned from the kernel", site);
  if (++barrier.waiting == needed) open_barrier(barrier);
  to_scheduler();
  EMU_ACQUIRE(token);
}

// A barrier's two halves: arriving does not wait.
EMU_UNTRACKED inline void arrive_at(Barrier& barrier, int needed, Site site) {
  EMU_QUIET self->site = site;
  if (self->arrived_phase >= 0) fail(std::string(barrier.name) + ": arrives twice without waiting", site);
  if (barrier.live < barrier.all && !options.early_exit)
    fail(std::string(barrier.name) + " after some threads have returned from the kernel", site);
  self->arrived_phase = barrier.phase;
  EMU_RELEASE(&barrier.token[barrier.phase & 1]);
  if (++barrier.waiting == needed) open_barrier(barrier);
}

EMU_UNTRACKED inline void wait_for(Barrier& barrier, Site site) {
  EMU_QUIET self->site = site;
  const int phase = self->arrived_phase;
  self->arrived_phase = -1;
  if (phase < 0) fail(std::string(barrier.name) + ": waits without having arrived", site);
  if (barrier.phase == phase) {
    self->barrier = &barrier;
    self->status = Status::kInBarrier;
    to_scheduler();
  }
  EMU_ACQUIRE(&barrier.token[phase & 1]);
}

// The thread has returned from the kernel.
EMU_UNTRACKED inline void leave(Barrier& barrier) {
  --barrier.live;
  if (!barrier.waiting) return;
  if (!options.early_exit)
    for (Block& block : *machine.blocks)
      for (Thread& thread : block.threads)
        if (thread.status == Status::kInBarrier && thread.barrier == &barrier)
          fail(std::string("some threads have returned from the kernel, others wait in ") + barrier.name,
               thread.site, &thread);
  if (barrier.waiting == barrier.live) open_barrier(barrier);
}

}  // namespace emu
