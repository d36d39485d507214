// Loops whose rounds depend on each other: what unit-split recurrent steps need from a thread pool.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>

#include "common/cpu/parallel.h"

namespace fastdl::cpu {

constexpr int64_t kMostBlocks = 256;

namespace rounds {

struct alignas(64) Slot {
  std::atomic<int64_t> round{-1};  // the last one in which this block was claimed
};

struct Shared {
  Slot slots[kMostBlocks];
  alignas(64) std::atomic<int64_t> done{0};  // blocks of all rounds so far
};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Whether `target` blocks are done within some dozens of pauses.
inline bool done_soon(const std::atomic<int64_t>& done, int64_t target) {
  for (int spins = 0; spins < 50; ++spins, pause())
    if (done.load(std::memory_order_acquire) >= target) return true;
  return false;
}

// Waits for blocks that running workers have claimed: short, unless the machine is crowded.
inline void wait(const std::atomic<int64_t>& done, int64_t target) {
  for (int spins = 0; done.load(std::memory_order_acquire) < target; ++spins)
    if (spins > 2000)
      std::this_thread::yield();
    else
      pause();
}

}  // namespace rounds

// f(round, block) for every block in [0, blocks(round)) of every round in [0, rounds); a round begins when
// the one before it is done. blocks(round) <= kMostBlocks. Nobody waits for a worker that has not come:
// blocks are claimed one by one, a worker's own first (the same ones in every round: their data stays in its
// cache), and only claimed ones are waited for. To look at another's blocks takes their lines from its core:
// not before it is late, by a microsecond or two.
template <class Blocks, class F>
void parallel_rounds(const ThreadPool& pool, int64_t workers, int64_t rounds, const Blocks& blocks,
                     const F& f) {
  if (workers <= 1) {
    for (int64_t round = 0; round < rounds; ++round)
      for (int64_t block = 0, count = blocks(round); block < count; ++block) f(round, block);
    return;
  }
  struct Context {
    const Blocks& blocks;
    const F& f;
    int64_t workers, rounds;
    rounds::Shared shared;
  } context{blocks, f, workers, rounds, {}};
  pool.run(
      workers,
      [](void* opaque, int64_t worker) {
        Context& c = *static_cast<Context*>(opaque);
        int64_t target = 0;
        for (int64_t round = 0; round < c.rounds; ++round) {
          const int64_t count = c.blocks(round);
          target += count;
          if (c.shared.done.load(std::memory_order_acquire) >= target) continue;
          const int64_t first = worker * count / c.workers, end = (worker + 1) * count / c.workers;
          const auto run = [&](int64_t block) {
            std::atomic<int64_t>& slot = c.shared.slots[block].round;
            int64_t seen = slot.load(std::memory_order_relaxed);
            if (seen >= round || !slot.compare_exchange_strong(seen, round, std::memory_order_relaxed))
              return false;
            c.f(round, block);
            return true;
          };
          int64_t own = 0;
          for (int64_t block = first; block < end; ++block) own += run(block) ? 1 : 0;
          if (own > 0) c.shared.done.fetch_add(own, std::memory_order_acq_rel);
          if (rounds::done_soon(c.shared.done, target)) continue;
          for (int64_t i = 1; i <= count - (end - first); ++i)  // downwards
            if (run((first - i + count) % count)) c.shared.done.fetch_add(1, std::memory_order_acq_rel);
          rounds::wait(c.shared.done, target);
        }
      },
      &context);
}

}  // namespace fastdl::cpu
