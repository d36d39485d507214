// The emulated machine: threads, warps, blocks, clusters, and what is known about each.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "emulation/sanitizers.h"

namespace emu {

constexpr size_t kMaxSharedBytes = 227 * 1024;

struct Options {
  // A thread runs until it blocks in a barrier or a warp collective. 0: lanes and warps in order; 1: the same
  // backwards; 2: each warp as far as it can go, warp 0 first; 3: the same backwards; >3: seed of a random
  // mix. Asynchronous copies land as early as allowed in odd schedules and as late as allowed in even ones.
  int schedule = 0;
  // Allow a thread to return before others reach a block, cluster or grid barrier.
  bool early_exit = false;
  long spin_limit = 20000;
  // What the machine has: 16 as sm_90, 1 as what came before.
  unsigned largest_cluster = 16;
  // Of a block, in bytes: 64 KB as sm_75.
  unsigned largest_shared = kMaxSharedBytes;
  unsigned multiprocessors = 4;
};
inline Options options;

constexpr size_t kStackBytes = 128 << 10;
constexpr uint64_t kCanary = 0x5afec0de5afec0de;
constexpr size_t kMaxStaticSharedBytes = 48 * 1024;

enum class Status : char { kReady, kSpinning, kInWarp, kInBarrier, kDone };

struct Site {
  const char* file = "?";
  int line = 0;
};
#define EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// Two tokens, one a phase: a fast thread's next phase must not be taken for this one.
struct Barrier {
  const char* name;
  bool one_site;  // all threads must wait at the same line
  int live = 0, waiting = 0, phase = 0, all = 0;
  char token[2] = {};
};

struct Copy {
  void* to;
  const void* from;
  int bytes, valid;
};

// One wgmma: what the threads of a warpgroup have deposited (warpgroup.h).
struct Product {
  Site site;
  int tiles;
  bool add, transposed, in_registers;
  uint64_t left, right;
  float (*element)(uint16_t);
  int deposited = 0;
  bool done = false;
  float* sums[128] = {};
  uint32_t fragments[128][4] = {};
};

// Sums that belong to the tensor cores until a thread waits for the last product that adds to them.
struct SumsInFlight {
  std::vector<float> values;
  int last = 0;
};

struct Warp;
struct Block;

struct Thread {
  void* stack_pointer;
  char* stack;
  Status status = Status::kReady;
  uint3 id;
  int lane;
  Warp* warp;
  Block* block;
  Barrier* barrier = nullptr;
  int arrived_phase = -1;  // of a barrier it has arrived at and not yet waited for
  Site site, copy_site;
  void* arguments;  // of the warp collective it waits in
  unsigned mask;
  int phase = 0;
  char token[2] = {};
  void *tsan, *asan = nullptr;
  std::vector<Copy> open_copies;               // cp.async not yet committed
  std::vector<std::vector<Copy>> copy_groups;  // committed, not yet waited for
  int products = 0, products_over = 0;         // wgmma so far, and of those it has waited for
  std::vector<int> product_groups;             // how many there were at each commit not yet waited for
  std::map<float*, SumsInFlight> sums_in_flight;
  bool fenced = false;  // no register has been free to change since wgmma_fence
};

struct Warp {
  Thread* lane[32] = {};
};

struct Cluster {
  Barrier barrier{"cluster.sync", true};
  std::vector<Block*> blocks;
};

// A phase ends when all arrivals and all announced bytes are in.
struct MemoryBarrier {
  int count, pending;
  long bytes = 0;
  int phase = 0;
  char token[2] = {};
  std::vector<Copy> copies;
};

struct SharedArray {
  char* data = nullptr;
  size_t bytes = 0;
};

struct Block {
  uint3 id;
  unsigned rank = 0;
  Cluster* cluster = nullptr;
  Barrier barrier{"__syncthreads", true};
  std::map<int, Barrier> named;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  SharedArray dynamic_shared;
  std::map<const void*, SharedArray> static_shared;
  std::map<void*, MemoryBarrier> memory_barriers;
  std::map<int, std::deque<Product>> products;  // by warpgroup
};

struct Machine {
  void* stack_pointer;
  void *tsan, *asan;
  const void* host_stack;
  size_t host_stack_bytes;
  dim3 grid, block;
  std::function<void()>* body;
  char start_token, end_token, fence_token;
  Barrier grid_barrier{"grid.sync", true};
  uint64_t random;
  int schedule;
  bool cooperative, copies_land_early;
  std::vector<Block>* blocks;
  std::vector<char*> stacks;
  std::string error;
  long switches = 0;
  ~Machine() {
    for (char* stack : stacks) free(stack);
  }
};
inline Machine machine;
inline Thread* self = nullptr;  // the running CUDA thread

// Records the first complaint; the launch stops at the next switch.
inline void fail(const std::string& what, Site site, const Thread* thread = self) {
  if (!machine.error.empty()) return;
  machine.error = what + " at " + site.file + ":" + std::to_string(site.line);
  if (!thread) return;
  auto triple = [](const uint3& v) {
    return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
  };
  machine.error += " block" + triple(thread->block->id) + " thread" + triple(thread->id);
}

}  // namespace emu
