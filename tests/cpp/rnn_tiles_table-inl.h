// A recurrent product by tiles, for rnn_tiles_test.cpp.
#include "common/cpu/dot-inl.h"
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

// y = the product of rows with all vectors of a weight, packed into `panels`; the sizes if y is null.
template <class S>
static ProductSizes product(const ProductCase& c, const void* plain, float* panels, BFloat16* packed,
                            const float* a, float* y) {
  const Weight w = {plain, c.gates, c.units, c.depth, c.transposed, panels};
  if (y == nullptr) return {panel_floats<S>(w), packed_row_elements<S>(c.rows, c.depth), w.vectors(), kLanes};
  RangeOf<S> range = {};
  for (int64_t panel = 0; panel < w.num_panels(); ++panel) pack_panel<S>(w, panel, range);
  [[maybe_unused]] const ProductUse<S> use;
  // In three shares, of which one may be empty.
  for (int64_t share = 0; share < 3; ++share)
    pack_share<S>(w, a, c.depth, c.rows, row_share<S>(c.rows, share, 3), packed, range);
  const ProductRows left = product_rows<S>(w, a, c.depth, c.rows, packed);
  // In two calls, cut between panels.
  const int64_t cut = w.num_panels() / 2 * kPanelVecs, stride = w.vectors() * kLanes;
  for_tiles(c.rows, [&](int64_t row, int64_t rows) {
    float* const to = y + row * stride;
    if (cut > 0) multiply<S>(w, left, row, rows, 0, cut, to, stride);
    multiply<S>(w, left, row, rows, cut, w.vectors() - cut, to + cut * kLanes, stride);
  });
  return {};
}

constexpr ProductTable kProduct = {{kByTiles<BFloat16>, product<BFloat16>},
                                   {kByTiles<float>, product<float>}};
