// How the products of a dtype are computed, by vectors or by tiles, and of what size a call's numbers may
// then be: fp32 by tiles is not for all (split_gemm-inl.h). Saves nothing. Included after tiles-inl.h, once
// per instruction set: no include guard.

// Where every number will do.
struct AnyRange {
  void widen_by(const AnyRange&) {}
  bool fits() const { return true; }
};
FASTDL_INLINE bool fit_together(const AnyRange&, const AnyRange&, int64_t) { return true; }

template <class S>
struct Arithmetic {
  static constexpr int64_t kTileParts = 0;  // bf16 that a number is the sum of, in tiles; 0: by vectors
  using Range = AnyRange;
  struct Use {};  // held while products run
};
#if FASTDL_TILES
template <>
struct Arithmetic<BFloat16> {
  static constexpr int64_t kTileParts = 1;
  using Range = AnyRange;
  using Use = TileUse;
};
#endif
#if FASTDL_SPLIT_TILES
template <>
struct Arithmetic<float> {
  static constexpr int64_t kTileParts = kSplitParts;
  using Range = SplitRange;
  using Use = TileUse;
};
#endif

template <class S>
constexpr int64_t kTileParts = Arithmetic<S>::kTileParts;
template <class S>
constexpr bool kByTiles = kTileParts<S> > 0;
template <class S>
using RangeOf = typename Arithmetic<S>::Range;
template <class S>
using ProductUse = typename Arithmetic<S>::Use;

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
