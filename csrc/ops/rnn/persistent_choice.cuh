// The shape of a persistent launch: how many units a block owns, how many blocks share them, how many groups
// run
//   at once, asked of the device.
// How work is split: persistent.cuh.
// Saves nothing.
#pragma once
#include <map>
#include <mutex>
#include <tuple>

#include "common/cuda/divide.cuh"
#include "ops/rnn/persistent_exchange.cuh"

namespace fastdl::cuda {
namespace {

// More rounds of clusters than this, and a launch a step fills the machine better.
constexpr int64_t kMostRounds = 4;
// A step of a grid costs its meeting, 0.7 to 1.5 us: three trips to the far part of the L2 at 414 cycles each
// (H800, arXiv 2402.13499), or what grid barriers take. Two launches that take turns stay near the 2 to 4 us
// of a launch a step.
constexpr int64_t kMostGridLaunches = 2;

int64_t tiles(const RnnSequence& q) { return (q.rows.B + kTileRows - 1) / kTileRows; }

template <class Group>
fd::LaunchShape launch_shape(const RnnSequence& q, const PersistentShape& s, int64_t tiles) {
  constexpr bool kGrid = std::is_same_v<Group, Grid>;
  fd::LaunchShape launch;
  launch.grid = dim3(static_cast<unsigned>(tiles * s.blocks), static_cast<unsigned>(q.s.directions));
  launch.block = dim3(s.threads), launch.shared_bytes = s.shared_bytes;
  launch.cooperative = kGrid, launch.cluster = kGrid ? 1 : s.blocks;
  return launch;
}

// Clusters, or blocks of a grid, that run at once: asked once for each kernel, size and device.
template <class Kernel>
int64_t residents(Kernel kernel, const fd::LaunchShape& launch) {
  static std::mutex mutex;
  static std::map<std::tuple<Kernel, int, size_t, unsigned, unsigned>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key =
      std::make_tuple(kernel, fd::current_device(), launch.shared_bytes, launch.block.x, launch.cluster);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  return known[key] = fd::resident_clusters(kernel, launch);
}

// choose() finds the best shape for groups of a kind, blocks 0 where none fits. gates, value_gates: as in
// persistent_shape(); kernel(shape) names the kernel that would run.
// One block needs no other; else small blocks share the work of a step among most processors.
template <class T, class Kernel>
PersistentShape choose(Cluster, const RnnSequence& q, int gates, int value_gates, Kernel kernel) {
  const int H = static_cast<int>(q.H);
  auto fits = [&](int blocks, int most_units, bool only_registers) {
    const int units = round_up((H + blocks - 1) / blocks, kTileUnits);
    if (units > most_units) return PersistentShape{};
    PersistentShape s = persistent_shape<T>(units, blocks, gates, value_gates, Cluster::kBuffers);
    if (only_registers && s.chunks * gates > register_pieces(s.splits)) return PersistentShape{};
    s.tiles = static_cast<int>(tiles(q));
    const fd::LaunchShape launch = launch_shape<Cluster>(q, s, tiles(q));
    return residents(kernel(s), launch) * kMostRounds >= tiles(q) * q.s.directions ? s : PersistentShape{};
  };
  if (const PersistentShape s = fits(1, 128, true); s.blocks) return s;
  for (int most_units : {32, 128})
    for (int blocks = 1; blocks <= 16; blocks *= 2)
      if (const PersistentShape s = fits(blocks, most_units, false); s.blocks) return s;
  return {};
}

// The fewest launches; then the smallest blocks, which share the work of a step among most processors.
template <class T, class Kernel>
PersistentShape choose(Grid, const RnnSequence& q, int gates, int value_gates, Kernel kernel) {
  const int H = static_cast<int>(q.H);
  for (int64_t launches = 1; launches <= kMostGridLaunches; ++launches)
    for (int most_units : {16, 32}) {
      const int blocks = (H + most_units - 1) / most_units;
      const int units = round_up((H + blocks - 1) / blocks, kTileUnits);
      PersistentShape s = persistent_shape<T>(units, blocks, gates, value_gates, Grid::kBuffers);
      const int64_t together = (tiles(q) + launches - 1) / launches;
      s.tiles = static_cast<int>(together);
      if (residents(kernel(s), launch_shape<Grid>(q, s, together)) >= together * blocks * q.s.directions)
        return s;
    }
  return {};
}

}  // namespace
}  // namespace fastdl::cuda
