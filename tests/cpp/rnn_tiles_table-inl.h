// A recurrent product by emulated tiles, for rnn_tiles_test.cpp.
#include "common/cpu/dot-inl.h"
#include "common/cpu/tiles-inl.h"
#include "ops/rnn/rnn_units-inl.h"
//
#include "ops/rnn/rnn_panel-inl.h"
#include "ops/rnn/rnn_weight-inl.h"
#if FASTDL_TILES
#include "common/cpu/tile_gemm-inl.h"
#include "ops/rnn/rnn_tiles-inl.h"
#endif
//
#include "ops/rnn/rnn_product-inl.h"

// y = the product of rows with all vectors of a weight, packed into `panels`; the sizes if y is null.
static ProductSizes product(const ProductCase& c, const BFloat16* plain, float* panels, const float* a,
                            float* y) {
  const Weight w = {plain, c.gates, c.units, c.depth, c.transposed, panels};
  if (y == nullptr) return {panel_floats<BFloat16>(w), w.vectors(), kLanes};
  for (int64_t panel = 0; panel < w.num_panels(); ++panel) pack_panel<BFloat16>(w, panel);
  // In two calls, cut between panels.
  const int64_t cut = w.num_panels() / 2 * kPanelVecs, stride = w.vectors() * kLanes;
  if (cut > 0) multiply<BFloat16>(w, c.rows, a, c.depth, 0, cut, y, stride);
  multiply<BFloat16>(w, c.rows, a, c.depth, cut, w.vectors() - cut, y + cut * kLanes, stride);
  return {};
}

constexpr ProductTable kProduct = {by_tiles(BFloat16{}), product};
