// Runs a grid: block by block, or all blocks at once for cooperative launches and clusters.
#pragma once
#include <algorithm>

#include "emulation/barrier.h"
#include "emulation/shared_memory.h"

namespace emu {

inline uint64_t next_random() {
  uint64_t& r = machine.random;
  r ^= r << 13;
  r ^= r >> 7;
  r ^= r << 17;
  return r;
}

inline bool backwards() { return machine.schedule == 1 || machine.schedule == 3; }

EMU_UNTRACKED inline void finish_thread(Thread* thread) {
  leave(thread->block->barrier);
  leave(thread->block->cluster->barrier);
  leave(machine.grid_barrier);
  if (*reinterpret_cast<uint64_t*>(thread->stack) != kCanary)
    fail("stack overflow of a CUDA thread", thread->site, thread);
}

// One turn of a warp: lanes in order, or (greedy) again and again until all of them are blocked.
EMU_UNTRACKED inline void run_warp(Warp* warp, size_t& left, bool& ran, bool& moved) {
  bool random = machine.schedule > 3;
  bool greedy = machine.schedule == 2 || machine.schedule == 3 || (random && next_random() & 1);
  int flip = backwards() ? 31 : random ? next_random() & 31 : 0;
  bool any;
  do {
    any = false;
    for (int i = 0; i < 32; ++i) {
      Thread* thread = warp->lane[i ^ flip];
      if (!thread || thread->status != Status::kReady || !machine.error.empty()) continue;
      resume(thread);
      any = ran = true;
      moved |= thread->status != Status::kSpinning;
      if (thread->status != Status::kDone) continue;
      --left;
      finish_thread(thread);
    }
  } while (any && greedy);
}

inline void report_deadlock(const std::vector<Warp*>& warps, bool ran) {
  for (Warp* warp : warps)
    for (Thread* thread : warp->lane) {
      if (!thread || thread->status == Status::kDone || (ran && thread->status != Status::kSpinning))
        continue;
      if (thread->status == Status::kInWarp)
        fail("deadlock: warp collective not reached by all lanes of its mask", thread->site, thread);
      else if (thread->status == Status::kSpinning)
        fail("livelock: threads spin and nobody moves", thread->site, thread);
      else
        fail(std::string("deadlock: not all threads reach ") + thread->barrier->name, thread->site, thread);
    }
}

EMU_UNTRACKED inline void run_blocks(std::vector<Block>& blocks) {
  std::vector<Warp*> warps;
  size_t left = 0;
  for (Block& block : blocks) {
    left += block.threads.size();
    for (Warp& warp : block.warps) warps.push_back(&warp);
  }
  if (backwards()) std::reverse(warps.begin(), warps.end());
  long idle = 0;
  while (left && machine.error.empty()) {
    bool ran = false, moved = false;
    if (machine.schedule > 3)
      for (size_t i = warps.size(); i > 1; --i) std::swap(warps[i - 1], warps[next_random() % i]);
    for (Warp* warp : warps)
      for (Thread* thread : warp->lane)
        if (thread && thread->status == Status::kSpinning) thread->status = Status::kReady;
    for (Warp* warp : warps) run_warp(warp, left, ran, moved);
    idle = moved ? 0 : idle + 1;
    if (!ran || idle >= options.spin_limit) report_deadlock(warps, ran);
  }
}

inline char*& stack_of(size_t index) {
  while (machine.stacks.size() <= index) machine.stacks.push_back(nullptr);
  char*& stack = machine.stacks[index];
  // Under ThreadSanitizer a new stack, since it has a clean race history.
  EMU_TSAN(free(stack); stack = nullptr;)
  if (!stack) stack = static_cast<char*>(aligned_alloc(64, kStackBytes));
  return stack;
}

inline void prepare_block(Block& block, Cluster& cluster, size_t id, size_t first_stack,
                          size_t shared_bytes) {
  const dim3 &grid = machine.grid, &size = machine.block;
  size_t threads = size_t(size.x) * size.y * size.z;
  block.id = {unsigned(id % grid.x), unsigned(id / grid.x % grid.y), unsigned(id / grid.x / grid.y)};
  block.rank = cluster.blocks.size();
  block.cluster = &cluster;
  cluster.blocks.push_back(&block);
  cluster.barrier.all = cluster.barrier.live += threads;
  block.barrier.all = block.barrier.live = threads;
  block.threads.resize(threads);
  block.warps.resize((threads + 31) / 32);
  if (shared_bytes) block.dynamic_shared = allocate_shared(shared_bytes);
  for (size_t t = 0; t < threads; ++t) {
    Thread& thread = block.threads[t];
    thread.id = {unsigned(t % size.x), unsigned(t / size.x % size.y), unsigned(t / size.x / size.y)};
    thread.lane = t & 31;
    thread.warp = &block.warps[t / 32];
    thread.warp->lane[thread.lane] = &thread;
    thread.block = &block;
    prepare_stack(thread, stack_of(first_stack + t));
  }
}

// Keeps the block's shared memory until the launch ends, unreadable, so that a late access is seen.
inline void finish_block(Block& block, std::vector<SharedArray>& kept) {
  size_t static_bytes = 0;
  for (auto& [key, array] : block.static_shared) {
    static_bytes += array.bytes;
    kept.push_back(array);
    EMU_ASAN(__asan_poison_memory_region(array.data, array.bytes);)
  }
  if (static_bytes > kMaxStaticSharedBytes || static_bytes + block.dynamic_shared.bytes > kMaxSharedBytes)
    fail("too much shared memory", {});
  if (block.dynamic_shared.data) kept.push_back(block.dynamic_shared);
  for (Thread& thread : block.threads) {
    bool flying = !thread.open_copies.empty();
    for (auto& group : thread.copy_groups) flying |= !group.empty();
    if (flying && machine.error.empty())
      fail("cp.async still in flight when the thread returned", thread.copy_site, &thread);
    if (!thread.sums_in_flight.empty() && machine.error.empty())
      fail("wgmma still in flight when the thread returned", thread.site, &thread);
    EMU_TSAN(if (machine.error.empty()) __tsan_destroy_fiber(thread.tsan);)
  }
  for (auto& [key, barrier] : block.memory_barriers)
    if (!barrier.copies.empty() && machine.error.empty())
      fail("bulk copy still in flight when the block ended", {}, &block.threads[0]);
}

inline std::vector<size_t> order_of_groups(size_t count) {
  std::vector<size_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = backwards() ? count - 1 - i : i;
  if (machine.schedule > 3)
    for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[next_random() % i]);
  return order;
}

inline const char* invalid_launch(dim3 grid, dim3 block, size_t shared_bytes, unsigned cluster) {
  size_t threads = size_t(block.x) * block.y * block.z;
  if (!threads || threads > 1024 || block.z > 64) return "invalid launch: empty or too large block";
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return "invalid launch: empty or too large grid";
  if (shared_bytes > kMaxSharedBytes) return "invalid launch: more than 227 KB of dynamic shared memory";
  if (shared_bytes > options.largest_shared) return "invalid launch: more shared memory than the machine has";
  if (!cluster || cluster > 16 || grid.x % cluster) return "invalid launch: cluster size";
  return nullptr;
}

// A launch after a failed one does nothing: the first complaint stays until it is read and cleared.
inline void launch(dim3 grid, dim3 block, size_t shared_bytes, bool cooperative, unsigned cluster,
                   std::function<void()> body) {
  if (!machine.error.empty()) return;
  if (const char* what = invalid_launch(grid, block, shared_bytes, cluster)) return fail(what, {}, nullptr);
  if (cooperative && size_t(grid.x) * grid.y * grid.z > options.multiprocessors)
    return fail("invalid launch: more blocks than are resident at once", {}, nullptr);
  CatchFaults faults;
  std::vector<SharedArray> kept;
  {
    EMU_QUIET machine.grid = grid;
    machine.block = block;
    machine.body = &body;
    machine.cooperative = cooperative;
    machine.schedule = options.schedule;
    machine.copies_land_early = machine.schedule & 1;
    machine.random = 88172645463325252ull + 7919 * machine.schedule;
    EMU_TSAN(machine.tsan = __tsan_get_current_fiber();)
    size_t threads = size_t(block.x) * block.y * block.z, count = size_t(grid.x) * grid.y * grid.z;
    size_t together = cooperative ? count : cluster;
    for (size_t group : order_of_groups(count / together)) {
      std::vector<Block> blocks(together);
      std::vector<Cluster> clusters(together / cluster);
      machine.blocks = &blocks;
      machine.grid_barrier = Barrier{"grid.sync", true};
      machine.grid_barrier.live = machine.grid_barrier.all = together * threads;
      for (size_t i = 0; i < together; ++i)
        prepare_block(blocks[i], clusters[i / cluster], group * together + i, i * threads, shared_bytes);
      EMU_RELEASE(&machine.start_token);
      run_blocks(blocks);
      for (Block& b : blocks) finish_block(b, kept);
      if (!machine.error.empty()) break;
    }
    for (SharedArray& array : kept) {
      EMU_ASAN(__asan_unpoison_memory_region(array.data, array.bytes);)
      free(array.data);
    }
  }
  EMU_ACQUIRE(&machine.end_token);
}

}  // namespace emu
