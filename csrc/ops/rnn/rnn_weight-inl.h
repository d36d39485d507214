// A weight of the recurrent kernels, as it is and packed, and what multiplies it. One thread. Saves nothing.

// y = a W^T for W [G * units, depth], or y = a W for W [depth, units].
struct Weight {
  const void* plain;
  int64_t gates, units, depth;
  bool transposed;
  float* panels;  // [vectors / kPanelVecs, depth, kPanelVecs, kLanes], or tiles; null: `plain` is read

  int64_t vectors() const { return vectors_of(units) * gates; }
  int64_t num_panels() const { return (vectors() + kPanelVecs - 1) / kPanelVecs; }
  int64_t floats() const { return num_panels() * kPanelWidth * depth; }
};

// Whether a packed weight is multiplied by AMX tiles: bf16 where there are any, fp32 in three parts.
template <class S>
constexpr bool by_tiles(S) {
  return false;
}
#if FASTDL_TILES
constexpr bool by_tiles(BFloat16) { return true; }
#endif
#if FASTDL_SPLIT_TILES
constexpr bool by_tiles(float) { return true; }
#endif

// What products of S need while they run.
struct NoUse {};
template <bool kTiles>
struct UseFor {
  using Type = NoUse;
};
#if FASTDL_TILES
template <>
struct UseFor<true> {
  using Type = TileUse;
};
#endif
template <class S>
using ProductUse = typename UseFor<by_tiles(S{})>::Type;
