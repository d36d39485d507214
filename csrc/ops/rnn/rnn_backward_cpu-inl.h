// The recurrence backward, called: parameters packed, work split, a table by cell and dtype.
// Work is split as rnn_split says. Saves nothing.

#include "common/cpu/dot-inl.h"
#include "common/cpu/math-inl.h"
#include "common/cpu/tiles-inl.h"
#include "ops/rnn/rnn_units-inl.h"
//
#if FASTDL_TILES
#include "common/cpu/tile_gemm-inl.h"
#endif
#if FASTDL_SPLIT_TILES
#include "common/cpu/split_gemm-inl.h"
#endif
//
#include "ops/rnn/rnn_panel-inl.h"
#include "ops/rnn/rnn_weight-inl.h"
//
#include "ops/rnn/rnn_arithmetic-inl.h"
#if FASTDL_TILES
#include "ops/rnn/rnn_tiles-inl.h"
#endif
//
#include "ops/rnn/rnn_product-inl.h"
//
#include "ops/rnn/rnn_cell-inl.h"
#include "ops/rnn/rnn_norm-inl.h"
#include "ops/rnn/rnn_parameters-inl.h"
#include "ops/rnn/rnn_tasks-inl.h"
//
#include "ops/rnn/rnn_backward_state-inl.h"
//
#include "ops/rnn/rnn_backward-inl.h"

// False: numbers were out of the range of tiles, all is to be computed without.
template <Cell kCell, class S>
bool backward(const RnnBackward& args, const RnnPlan& plan, const ThreadPool& pool) {
  using Task = Backward<kCell, S>;
  const RnnSequence& q = args.q;
  const int64_t D = q.s.directions, G = num_gates(kCell);
  Parameters parameters[2];
  for (int64_t d = 0; d < D; ++d) {
    const RnnWeights& w = q.weights[d];
    parameters[d].recurrent = {w.weight_hh, 1, q.R, G * q.H, false, nullptr};
    parameters[d].projection = {w.weight_hr, 1, q.H, q.R, false, nullptr};
  }
  const UnitGroups units =
      even_groups(parameters[0].recurrent.vectors(), 2 * kPanelVecs, pool.size() > 1 ? pool.size() : 1);
  const RnnSplit split = rnn_split(q, parameters[0].recurrent.floats(), units, 2 * kPanelVecs, pool);
  CallRanges<S> ranges = {pool.size() > 1 ? pool.size() : 1, D * split.shares, split.blocks};
  Task* tasks = nullptr;
  const auto lay_out = [&](Arena arena) {
    for (int64_t d = 0; d < D; ++d) {
      take_panels<S>(parameters[d].recurrent, arena);
      take_panels<S>(parameters[d].projection, arena);
      take_small_parameters<S>(parameters[d], q, q.weights[d], arena);
    }
    ranges.take(arena);
    tasks = arena.take<Task>(D * split.shares);
    for (int64_t k = 0; k < D * split.shares; ++k) {
      Task counted, &task = arena.base == nullptr ? counted : tasks[k];
      task.f = &args, task.share = {&plan, k % split.shares, split.shares};
      task.d = k / split.shares, task.blocks = split.blocks, task.w = &parameters[task.d];
      task.group = units.size;
      task.ranges = ranges.of_task(k);
      task.take(arena);
    }
    return arena.used;
  };
  const size_t bytes = lay_out({nullptr, 0});
  lay_out({static_cast<char*>(thread_scratch(bytes)), 0});
  ranges.clear();
  Weight* weights[4];
  for (int64_t d = 0; d < D; ++d)
    weights[2 * d] = &parameters[d].recurrent, weights[2 * d + 1] = &parameters[d].projection;
  pack_weights<S>(weights, 2 * D, ranges.of_weights(), pool);
  if (!ranges.weights_fit()) return false;
  run_tasks(tasks, split, D, q.rows.T + 1, pool);
  return ranges.fit(G * q.H);
}

using RnnFunction = bool (*)(const RnnBackward&, const RnnPlan&, const ThreadPool&);

#if FASTDL_ISA >= FASTDL_ISA_AMX
template <Cell kCell>
bool backward_by_size(const RnnBackward& args, const RnnPlan& plan, const ThreadPool& pool) {
  return (fills_tiles(args.q, plan) && backward<kCell, float>(args, plan, pool)) ||
         avx512::RnnTable<kCell>::kByDtype[1](args, plan, pool);
}
#endif

// By cell and dtype; fp64 has none, and both plain cells are one. AVX512-BF16 adds tiles for bf16, AMX for
// fp32.
template <Cell kCell>
struct RnnTable {
  static constexpr RnnFunction kByDtype[] = {nullptr,
#if FASTDL_ISA >= FASTDL_ISA_AMX
                                             backward_by_size<kCell>, avx512::RnnTable<kCell>::kByDtype[2],
#elif FASTDL_ISA >= FASTDL_ISA_AVX512BF16
                                             avx512::RnnTable<kCell>::kByDtype[1],
                                             avx512::RnnTable<kCell>::kByDtype[2],
#else
                                             backward<kCell, float>, backward<kCell, Float16>,
#endif
                                             backward<kCell, BFloat16>};
};
const RnnFunction* const kRnnBackward[] = {RnnTable<Cell::kLstm>::kByDtype, RnnTable<Cell::kGru>::kByDtype,
                                           RnnTable<Cell::kRnnTanh>::kByDtype,
                                           RnnTable<Cell::kRnnTanh>::kByDtype};
