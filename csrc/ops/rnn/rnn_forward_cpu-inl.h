// The recurrence forward, called: parameters packed, work split, a table by cell and dtype.
// Work is split as rnn_split says. Saves what rnn_forward-inl.h says.

#include "common/cpu/dot-inl.h"
#include "common/cpu/gemm-inl.h"
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
#include "ops/rnn/rnn_turned-inl.h"
//
#include "ops/rnn/rnn_cell-inl.h"
#include "ops/rnn/rnn_norm-inl.h"
#include "ops/rnn/rnn_parameters-inl.h"
#include "ops/rnn/rnn_tasks-inl.h"
//
#include "ops/rnn/rnn_forward_state-inl.h"
//
#include "ops/rnn/rnn_forward-inl.h"

// Products with few rows read the plain weight: packing would cost more than it saves. All steps' rows are
// projected, a step's are multiplied by the recurrent weights.
FASTDL_INLINE bool packs_input(const RnnSequence& q) {
  return q.rows.count > (FASTDL_ISA >= FASTDL_ISA_AVX512 ? 24 : 128);
}
FASTDL_INLINE bool packs(const RnnSequence& q) { return q.rows.B > 3 && packs_input(q); }

// Steps projected at once: enough rows for every worker's product to reach its speed. Weights in three parts
// push the recurrent ones out of an L2 of 2 MB, which more rows make seldom.
template <class S>
FASTDL_INLINE int64_t chunk_of(const RnnSequence& q, const RnnSplit& split) {
  constexpr int64_t kOfWorker = 64, kFewest = kTileParts<S> > 1 ? 256 : kOfWorker;
  const int64_t rows = kOfWorker * (split.blocks > 1 ? split.workers : 1), each = q.rows.B / split.shares + 1;
  const int64_t steps = ((rows > kFewest ? rows : kFewest) + each - 1) / each;
  return steps < q.rows.T ? steps : q.rows.T;
}

// False: numbers were out of the range of tiles, all is to be computed without.
template <Cell kCell, class S>
bool forward(const RnnForward& args, const RnnPlan& plan, const ThreadPool& pool) {
  using Task = Forward<kCell, S>;
  const RnnSequence& q = args.q;
  const int64_t D = q.s.directions, G = num_gates(kCell);
  Parameters parameters[2];
  for (int64_t d = 0; d < D; ++d) {
    const RnnWeights& w = q.weights[d];
    parameters[d].input = {w.weight_ih, G, q.H, q.I, true, nullptr};
    parameters[d].recurrent = {w.weight_hh, G, q.H, q.R, true, nullptr};
    parameters[d].projection = {w.weight_hr, 1, q.R, q.H, true, nullptr};
  }
  const bool turned = turns<S>(q);
  const int64_t together = packs(q) && !turned ? Task::kGroup : 1;
  const UnitGroups units = even_groups(vectors_of(q.H), together, pool.size() > 1 ? pool.size() : 1);
  RnnSplit split = rnn_split(q, parameters[0].recurrent.floats(), units, together, pool);
  if (turned && split.blocks > split.workers) split.blocks = split.workers;
  CallRanges<S> ranges = {pool.size() > 1 ? pool.size() : 1, D * split.shares, split.blocks};
  Task* tasks = nullptr;
  const auto lay_out = [&](Arena arena) {
    for (int64_t d = 0; d < D; ++d) {
      Parameters& p = parameters[d];
      if (packs_input(q) && !turned) take_panels<S>(p.input, arena);
      if (packs(q) && !turned) take_panels<S>(p.recurrent, arena);
      if (packs(q)) take_panels<S>(p.projection, arena);
      take_small_parameters<S>(p, q, q.weights[d], arena);
    }
    ranges.take(arena);
    tasks = arena.take<Task>(D * split.shares);
    for (int64_t k = 0; k < D * split.shares; ++k) {
      Task counted, &task = arena.base == nullptr ? counted : tasks[k];
      task.f = &args, task.share = {&plan, k % split.shares, split.shares};
      task.d = k / split.shares, task.blocks = split.blocks, task.chunk = chunk_of<S>(q, split);
      task.units = units, task.turned = turned;
      task.w = &parameters[task.d];
      task.ranges = ranges.of_task(k);
      task.take(arena);
    }
    return arena.used;
  };
  const size_t bytes = lay_out({nullptr, 0});
  lay_out({static_cast<char*>(thread_scratch(bytes)), 0});
  ranges.clear();
  Weight* weights[6];
  for (int64_t d = 0; d < D; ++d)
    weights[3 * d] = &parameters[d].input, weights[3 * d + 1] = &parameters[d].recurrent,
                weights[3 * d + 2] = &parameters[d].projection;
  pack_weights<S>(weights, 3 * D, ranges.of_weights(), pool);
  if (!ranges.weights_fit()) return false;
  run_tasks(tasks, split, D, q.rows.T, pool);
  return ranges.fit(q.I + q.H);
}

using RnnFunction = bool (*)(const RnnForward&, const RnnPlan&, const ThreadPool&);

#if FASTDL_ISA >= FASTDL_ISA_AMX
template <Cell kCell>
bool forward_by_size(const RnnForward& args, const RnnPlan& plan, const ThreadPool& pool) {
  return (fills_tiles(args.q, plan) && forward<kCell, float>(args, plan, pool)) ||
         avx512::RnnTable<kCell>::kByDtype[1](args, plan, pool);
}
#endif

// By cell and dtype; fp64 has none, and both plain cells are one. AVX512-BF16 adds tiles for bf16, AMX for
// fp32.
template <Cell kCell>
struct RnnTable {
  static constexpr RnnFunction kByDtype[] = {nullptr,
#if FASTDL_ISA >= FASTDL_ISA_AMX
                                             forward_by_size<kCell>, avx512::RnnTable<kCell>::kByDtype[2],
#elif FASTDL_ISA >= FASTDL_ISA_AVX512BF16
                                             avx512::RnnTable<kCell>::kByDtype[1],
                                             avx512::RnnTable<kCell>::kByDtype[2],
#else
                                             forward<kCell, float>, forward<kCell, Float16>,
#endif
                                             forward<kCell, BFloat16>};
};
const RnnFunction* const kRnnForward[] = {RnnTable<Cell::kLstm>::kByDtype, RnnTable<Cell::kGru>::kByDtype,
                                          RnnTable<Cell::kRnnTanh>::kByDtype,
                                          RnnTable<Cell::kRnnTanh>::kByDtype};
