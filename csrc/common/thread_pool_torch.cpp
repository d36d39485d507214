#include <pthread.h>

#include "common/torch_glue.h"

namespace fastdl {
namespace {

bool forked = false;

int64_t pool_size() { return forked ? 1 : static_cast<int64_t>(torch::stable::get_num_threads()); }

void run(int64_t workers, void (*body)(void* context, int64_t worker), void* context) {
  if (forked) {
    for (int64_t worker = 0; worker < workers; ++worker) body(context, worker);
    return;
  }
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) body(context, worker);
  });
}

}  // namespace

const cpu::ThreadPool& torch_thread_pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
  static const cpu::ThreadPool pool{run, pool_size};
  (void)registered;
  return pool;
}

}  // namespace fastdl
