#include "ops/rnn/rnn_plan.h"

#include <algorithm>
#include <numeric>

#include "common/cpu/rounds.h"

namespace fastdl::cpu {

RnnPlan::RnnPlan(const RnnSequence& q)
    : rows(q.rows), counts(static_cast<size_t>(q.rows.T), q.rows.B), order(static_cast<size_t>(q.rows.B)) {
  std::iota(order.begin(), order.end(), int64_t{0});
  if (rows.batch_sizes != nullptr) counts.assign(rows.batch_sizes, rows.batch_sizes + rows.T);
  if (q.lengths == nullptr) return;
  // A copy: the tensor may change while the kernel runs.
  std::vector<int64_t> lengths(order.size());
  for (size_t b = 0; b < lengths.size(); ++b)
    lengths[b] = std::min(std::max(q.lengths[b], int64_t{0}), rows.T);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return lengths[static_cast<size_t>(a)] > lengths[static_cast<size_t>(b)];
  });
  int64_t active = rows.B;
  for (int64_t t = 0; t < rows.T; ++t) {
    while (active > 0 && lengths[static_cast<size_t>(order[static_cast<size_t>(active - 1)])] <= t) --active;
    counts[static_cast<size_t>(t)] = std::min(active, counts[static_cast<size_t>(t)]);
  }
}

UnitGroups even_groups(int64_t count, int64_t together, int64_t threads) {
  UnitGroups units = {count, together};
  const auto most = [&] { return (units.groups() + threads - 1) / threads * units.size; };
  while (units.size > 1 && most() * threads > count + count / 8) units.size /= 2;
  return units;
}

RnnSplit rnn_split(const RnnSequence& q, int64_t weight_floats, const UnitGroups& units, int64_t together,
                   const ThreadPool& pool) {
  const int64_t threads = std::max<int64_t>(pool.size(), 1), D = q.s.directions;
  // 12 rows of products hide the reading of weights that do not stay in a core's cache.
  const int64_t rows = weight_floats < 64 * 1024 ? 4 : 12;
  const int64_t each = D == 2 && threads % 2 == 0 ? threads / 2 : threads;
  const int64_t shares = std::min(each, std::max<int64_t>(q.rows.B / rows, 1));
  // A single step reads its weights once: shared units spare every core the other half.
  const bool one_step = q.rows.T == 1 && weight_floats >= 64 * 1024;
  if (threads == 1 || (shares * D >= threads && !one_step)) return {shares, 1, threads};
  // A step shorter than a few microseconds is not worth the meeting.
  if (q.rows.B * weight_floats < 64 * 1024) return {shares, 1, std::min(threads, shares * D)};
  // Several blocks for each worker, so that others can help, but none of fewer vectors than multiply fast.
  const int64_t each_worker = std::min<int64_t>(std::max<int64_t>(units.count / (together * threads), 1), 4);
  const int64_t blocks =
      std::max<int64_t>(std::min({units.groups(), each_worker * threads, kMostBlocks / D}), 1);
  return {1, blocks, std::min(threads, D * blocks)};
}

bool fills_tiles(const RnnSequence& q, const RnnPlan& plan) {
  constexpr int64_t kFewestRows = 32, kFewestUnits = 96;
  // Where weights in three parts do not stay in an L2, tiles wait for them unless many rows pass.
  constexpr int64_t kCached = 2 << 20;
  const int64_t bytes = num_gates(q.s.cell) * q.H * q.R * 6;
  const int64_t rows = std::accumulate(plan.counts.begin(), plan.counts.end(), int64_t{0});
  return q.rows.T > 1 && q.H >= kFewestUnits && rows >= q.rows.T * kFewestRows * (bytes > kCached ? 2 : 1);
}

}  // namespace fastdl::cpu
