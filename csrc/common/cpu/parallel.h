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

// f(task, worker) for every task in [0, tasks). Tasks are handed out one by one, so a slow core takes fewer.
// No two calls with one `worker` run at the same time: scratch memory may be indexed by it.
template <class F>
void parallel_tasks(const ThreadPool& pool, int64_t tasks, const F& f) {
  const int64_t size = pool.size();
  const int64_t workers = tasks < size ? tasks : size;
  if (workers <= 1) {
    for (int64_t task = 0; task < tasks; ++task) f(task, 0);
    return;
  }
  struct Shared {
    const F& f;
    int64_t tasks;
    std::atomic<int64_t> next{0};
  } shared{f, tasks};
  pool.run(
      workers,
      [](void* context, int64_t worker) {
        Shared& s = *static_cast<Shared*>(context);
        for (int64_t task; (task = s.next.fetch_add(1, std::memory_order_relaxed)) < s.tasks;)
          s.f(task, worker);
      },
      &shared);
}

}  // namespace fastdl::cpu
