// Which rows a step has, and where they lie: dense, packed and lengths look alike to the CPU kernels.
#pragma once
#include <algorithm>
#include <cstddef>
#include <vector>

#include "common/cpu/parallel.h"
#include "ops/rnn/rnn.h"

namespace fastdl::cpu {

// Sequences stand in an order of falling length, so that the active ones of a step come first.
struct RnnPlan {
  explicit RnnPlan(const RnnSequence& q);

  const RnnRows& rows;
  std::vector<int64_t> counts;  // [T]: active sequences of step t
  std::vector<int64_t> order;   // [B]: place -> sequence

  // The row of sequence b (not its place) in step t.
  int64_t row(int64_t t, int64_t b) const {
    return rows.row_offset != nullptr ? rows.row_offset[t] + b : t * rows.row_t + b * rows.row_b;
  }
  // Active sequences of step t; 0 for steps that do not exist.
  int64_t count(int64_t t) const { return t < 0 || t >= rows.T ? 0 : counts[static_cast<size_t>(t)]; }
};

// The places first, first + stride, ... of a plan: one worker's share, even for every step.
struct RnnShare {
  const RnnPlan* plan;
  int64_t first, stride;

  int64_t of(int64_t places) const { return places > first ? (places - first - 1) / stride + 1 : 0; }
  int64_t size() const { return of(plan->rows.B); }
  int64_t count(int64_t t) const { return of(plan->count(t)); }
  int64_t sequence(int64_t j) const { return plan->order[static_cast<size_t>(first + j * stride)]; }
};

// How a call is cut. Shares of the rows run all their steps alone; with one share and blocks > 1 workers
// share the units of every step.
struct RnnSplit {
  int64_t shares, blocks, workers;
};

// Vectors of units, or of a product, of which blocks take whole groups.
struct UnitGroups {
  int64_t count, size;

  int64_t groups() const { return (count + size - 1) / size; }
  // Where a block of `blocks` begins.
  int64_t first(int64_t block, int64_t blocks) const {
    return std::min(block * groups() / blocks * size, count);
  }
};

// In groups of `together`, which multiply fastest, or of fewer if some worker had far more than its share.
UnitGroups even_groups(int64_t count, int64_t together, int64_t threads);

// `weight_floats`: of one direction's recurrent weights; `together`: of the units, that multiply fastest.
RnnSplit rnn_split(const RnnSequence& q, int64_t weight_floats, const UnitGroups& units, int64_t together,
                   const ThreadPool& pool);

// Whether AMX tiles, which multiply fp32 in three parts of bf16, are faster than vectors: by the rows of a
// step on average, and by the units, beside whose products the cells must be little. For any number of
// threads.
bool fills_tiles(const RnnSequence& q, const RnnPlan& plan);

}  // namespace fastdl::cpu
