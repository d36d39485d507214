// Of what size the numbers of a call's products are: fp32 by tiles is not for all (split_gemm-inl.h).
// Saves nothing. Included after rnn_weight-inl.h, once per instruction set: no include guard.

// Where every number will do.
struct AnyRange {
  void widen_by(const AnyRange&) {}
  bool fits() const { return true; }
};
FASTDL_INLINE bool fit_together(const AnyRange&, const AnyRange&, int64_t) { return true; }

template <class S>
struct RangeFor {
  using Type = AnyRange;
};
#if FASTDL_SPLIT_TILES
template <>
struct RangeFor<float> {
  using Type = SplitRange;
};
#endif
template <class S>
using RangeOf = typename RangeFor<S>::Type;

// Of the weights, by the worker that packs them, and of the rows, by task and block.
template <class S>
struct CallRanges {
  int64_t workers, tasks, blocks;
  RangeOf<S>* all = nullptr;

  int64_t size() const { return workers + tasks * blocks; }
  void take(Arena& arena) { all = arena.take<RangeOf<S>>(size()); }
  void clear() {
    for (int64_t i = 0; i < size(); ++i) all[i] = {};
  }
  RangeOf<S>* of_weights() const { return all; }
  RangeOf<S>* of_task(int64_t task) const { return all + workers + task * blocks; }

  RangeOf<S> widest(int64_t from, int64_t to) const {
    RangeOf<S> range = {};
    for (int64_t i = from; i < to; ++i) range.widen_by(all[i]);
    return range;
  }
  bool weights_fit() const { return widest(0, workers).fits(); }
  // In sums of at most `depth` products.
  bool fit(int64_t depth) const { return fit_together(widest(0, workers), widest(workers, size()), depth); }
};
