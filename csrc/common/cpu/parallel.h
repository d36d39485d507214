// Parallel loops for kernels that know no framework: the pool is handed in as two function pointers.
#pragma once
#include <atomic>
#include <cstdint>

namespace fastdl::cpu {

// `run` calls body(context, worker) for worker = 0 .. workers - 1, in any order, possibly one after another:
// workers must never wait for each other. Bodies must not throw.
struct ThreadPool {
  void (*run)(int64_t workers, void (*body)(void* context, int64_t worker), void* context);
  int64_t (*size)();
};

// No threads but the caller's: below some work a parallel region costs more than it saves.
inline constexpr ThreadPool kSerial = {[](int64_t workers, void (*body)(void*, int64_t), void* context) {
                                         for (int64_t i = 0; i < workers; ++i) body(context, i);
                                       },
                                       []() -> int64_t { return 1; }};

// f(task, worker) for every task in [0, tasks). Each worker begins with its own even share of the tasks, in
// order, and only then takes from the others', so a slow core takes fewer. What another loop has just written
// is then still in its core's cache, and the lines that a core reads ahead, or in pairs, are its own: handed
// out in turns, depthwise and first layers took two threads 1.3 times as long. No two calls with one `worker`
// run at the same time: scratch memory may be indexed by it.
template <class F>
void parallel_tasks(const ThreadPool& pool, int64_t tasks, const F& f) {
  constexpr int64_t kMostShares = 64;
  const int64_t size = pool.size();
  const int64_t workers = tasks < size ? tasks : size;
  const int64_t shares = workers < kMostShares ? workers : kMostShares;
  if (workers <= 1) {
    for (int64_t task = 0; task < tasks; ++task) f(task, 0);
    return;
  }
  struct alignas(64) Cursor {
    std::atomic<int64_t> next;
  };
  struct Shared {
    const F& f;
    int64_t tasks, workers, shares;
    Cursor cursors[kMostShares];
  } shared{f, tasks, workers, shares, {}};
  for (int64_t share = 0; share < shares; ++share) shared.cursors[share].next = share * tasks / shares;
  pool.run(
      workers,
      [](void* context, int64_t worker) {
        Shared& s = *static_cast<Shared*>(context);
        const int64_t own = worker * s.shares / s.workers;
        for (int64_t i = 0; i < s.shares; ++i) {
          const int64_t share = (own + i) % s.shares, end = (share + 1) * s.tasks / s.shares;
          std::atomic<int64_t>& next = s.cursors[share].next;
          for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < end;) s.f(task, worker);
        }
      },
      &shared);
}

}  // namespace fastdl::cpu
