// relu(max_pool2d(conv2d(x, weight)) + bias) in bf16 as matrix products of AMX tiles, straight from staged
// rows. A task is a group of output rows of one image, or a few whole images, and a share of the channels.
// Saves one byte a pooled element. Included by foreach_isa.h: no include guard.

#include "common/cpu/tiles-inl.h"
// clang-format off: in the order of use
#if FASTDL_TILE_REGISTERS
#include "common/cpu/dot-inl.h"
#include "common/cpu/tile_gemm-inl.h"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_window-inl.h"
#include "ops/conv_relu_maxpool/bias_relu_maxpool_contiguous-inl.h"
#include "ops/conv_relu_maxpool/task-inl.h"
#include "ops/conv_relu_maxpool/implicit_gemm_tiles_staging-inl.h"
#include "ops/conv_relu_maxpool/implicit_gemm_tiles_plan-inl.h"
#include "ops/conv_relu_maxpool/narrow_planes-inl.h"
#include "ops/conv_relu_maxpool/write_ahead-inl.h"
#include "ops/conv_relu_maxpool/implicit_gemm_tiles_pool-inl.h"
// clang-format on

// What all tasks share.
struct TileShared {
  const int64_t *offset, *place;  // of each step's left operand; of each input column
  const BFloat16* weight;         // [column][step] of right operands
  const float* bias;              // whole vectors
};

// Sums of kRows operands of 16 pixels and kColumns of 16 outputs, in registers 0 .. 3; left in 4 and 5, right
// in 6 and 7. Meanwhile asks for lines that are written next.
template <int kRows, int kColumns>
FASTDL_INLINE void tap_block(const BFloat16* first, const BFloat16* second, const int64_t* offset,
                             int64_t steps, const BFloat16* right, float* first_sums, float* second_sums,
                             Ahead* ahead) {
  zero_tile<0>();
  if constexpr (kColumns == 2) zero_tile<1>();
  if constexpr (kRows == 2) zero_tile<2>();
  if constexpr (kRows == 2 && kColumns == 2) zero_tile<3>();
  for (int64_t k = 0; k < steps; ++k, right += kTileElements) {
    load_tile<4>(first + offset[k], 64);
    load_tile<6>(right, 64);
    dot_tiles<0, 4, 6>();
    if constexpr (kColumns == 2) {
      load_tile<7>(right + steps * kTileElements, 64);
      dot_tiles<1, 4, 7>();
    }
    if constexpr (kRows == 2) {
      load_tile<5>(second + offset[k], 64);
      dot_tiles<2, 5, 6>();
    }
    if constexpr (kRows == 2 && kColumns == 2) dot_tiles<3, 5, 7>();
    ask(ahead);
  }
  constexpr int64_t kRowBytes = kPairOutputs * sizeof(float);
  store_tile<0>(first_sums, kRowBytes);
  if constexpr (kColumns == 2) store_tile<1>(first_sums + kTileHeight, kRowBytes);
  if constexpr (kRows == 2) store_tile<2>(second_sums, kRowBytes);
  if constexpr (kRows == 2 && kColumns == 2) store_tile<3>(second_sums + kTileHeight, kRowBytes);
}

// sums[position][kPairOutputs] of a strip whose first position is staged at `from`.
template <int kColumns>
inline void multiply_strip(const BFloat16* from, const StripTiles& tiles, const int64_t* offset,
                           int64_t steps, const BFloat16* right, float* sums, Ahead ahead) {
  int64_t position = 0, in_row = 0, row = 0;
  const auto next = [&] {
    const int64_t at = position;
    position += kTileHeight;
    if (++in_row == tiles.in_row) in_row = 0, position = row += tiles.row;
    return at;
  };
  int64_t i = 0;
  for (; i + 2 <= tiles.count; i += 2) {
    const int64_t first = next(), second = next();
    tap_block<2, kColumns>(from + first * kTileDepth, from + second * kTileDepth, offset, steps, right,
                           sums + first * kPairOutputs, sums + second * kPairOutputs, &ahead);
  }
  if (i < tiles.count) {
    const int64_t last = next();
    tap_block<1, kColumns>(from + last * kTileDepth, nullptr, offset, steps, right,
                           sums + last * kPairOutputs, nullptr, &ahead);
  }
}

// Output rows `rows` of image n, channels [channel, channel + channels), from the sums of conv rows from
// `first_row` on.
inline void finish_strip(const ConvReluMaxpoolForward& a, const TilePlan& plan, const float* sums,
                         int64_t first_row, int64_t n, Range rows, int64_t channel, const float* bias,
                         float* values) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  const int64_t channels = smaller(g.C_out - channel, kPairOutputs), length = plan.stage.length;
  const bool recorded = a.record != nullptr;
  const auto pool = [&](auto to) {
    recorded ? pool_strip<true>(a, sums, first_row, length, rows, bias, to)
             : pool_strip<false>(a, sums, first_row, length, rows, bias, to);
  };
  BFloat16* output = static_cast<BFloat16*>(a.output);
  if (!plan.contiguous) {
    const int64_t at = (n * p.OH + rows.begin) * p.OW * g.C_out + channel;
    pool(PooledPixels{output + at, recorded ? a.record + at : nullptr, g.C_out, channels});
    return;
  }
  const int64_t plane = p.OH * p.OW, positions = (rows.end - rows.begin) * p.OW;
  const int64_t at = (n * g.C_out + channel) * plane + rows.begin * p.OW;
  BFloat16* pooled = reinterpret_cast<BFloat16*>(values);
  uint8_t* record = reinterpret_cast<uint8_t*>(values + plan.values);
  pool(PooledPixels{pooled, recorded ? record : nullptr, kPairOutputs, kPairOutputs});
  put_narrow_planes(pooled, kPairOutputs, positions, channels, plane, output + at);
  if (recorded) put_narrow_planes(record, kPairOutputs, positions, channels, plane, a.record + at);
}

// What finish_strip writes of the output, of the first image alone; asked for `times` times meanwhile.
inline Ahead lines_of(const ConvReluMaxpoolForward& a, const TilePlan& plan, int64_t n, Range rows,
                      int64_t channel, int64_t times) {
  const int64_t C_out = a.conv.C_out, OW = a.pool.OW, plane = a.pool.OH * OW;
  const int64_t positions = (rows.end - rows.begin) * OW, channels = smaller(C_out - channel, kPairOutputs);
  BFloat16* output = static_cast<BFloat16*>(a.output);
  if (plan.contiguous)
    return look_ahead(output + (n * C_out + channel) * plane + rows.begin * OW, plane, positions, channels,
                      sizeof(BFloat16), times);
  // - 1: kPairOutputs channels are one line
  return look_ahead(output + (n * plane + rows.begin * OW) * C_out + channel, C_out, channels - 1, positions,
                    sizeof(BFloat16), times);
}

inline void tile_task(const ConvReluMaxpoolForward& a, const TilePlan& plan, const TileShared& shared,
                      int64_t task, float* scratch) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  const int64_t share = task % plan.shares, group = task / plan.shares % plan.row_groups;
  const int64_t first_image = task / plan.shares / plan.row_groups * plan.images;
  const Range images = {first_image, smaller(g.N, first_image + plan.images)};
  const Range rows = {group * plan.rows, smaller(p.OH, (group + 1) * plan.rows)};
  const Range conv = conv_rows(g, p, rows);
  BFloat16* staged = reinterpret_cast<BFloat16*>(scratch);
  float *sums = scratch + plan.staged, *values = sums + plan.sums;
  const int64_t image = plan.image_rows * plan.stage.length;
  if (conv.begin < conv.end)
    for (int64_t n = images.begin; n < images.end; ++n)
      stage_image(a, plan.stage, static_cast<const BFloat16*>(a.x) + n * a.x_strides[0], conv, plan.plane,
                  shared.place, staged + (n - images.begin) * image * kTileDepth);
  const TileUse use;
  for (int64_t pair = share * plan.task_pairs; pair < smaller(plan.pairs, (share + 1) * plan.task_pairs);
       ++pair) {
    const int64_t channel = pair * kPairOutputs;
    const BFloat16* right = shared.weight + pair * 2 * plan.steps * kTileElements;
    for (int64_t n = images.begin; n < images.end; n += plan.strip_images)
      for (int64_t row = rows.begin; row < rows.end; row += plan.strip_rows) {
        const Range strip = {row, smaller(rows.end, row + plan.strip_rows)}, in = conv_rows(g, p, strip);
        const int64_t count = smaller(images.end - n, plan.strip_images);
        if (in.begin < in.end) {
          const BFloat16* from =
              staged +
              ((n - images.begin) * image + (in.begin - conv.begin) * plan.stage.length) * kTileDepth;
          const StripTiles tiles = strip_tiles(g, plan.stage, plan.image_rows, count, in.end - in.begin);
          const Ahead ahead = lines_of(a, plan, n, strip, channel, tiles_of(tiles.count, 2) * plan.steps);
          if (channel + kTileHeight < g.C_out)
            multiply_strip<2>(from, tiles, shared.offset, plan.steps, right, sums, ahead);
          else
            multiply_strip<1>(from, tiles, shared.offset, plan.steps, right, sums, ahead);
        }
        for (int64_t i = 0; i < count; ++i)
          finish_strip(a, plan, sums + i * image * kPairOutputs, in.begin, n + i, strip, channel,
                       shared.bias + channel, values);
      }
  }
}

inline void implicit_gemm_tiles(const ConvReluMaxpoolForward& a, const ThreadPool& threads) {
  const ConvGeometry& g = a.conv;
  const PoolGeometry& p = a.pool;
  if (g.N * g.C_out * p.OH * p.OW == 0) return;
  // Tiles multiply 16 times as fast as vectors.
  const ThreadPool& workers =
      g.N * g.C_out * g.CH * g.CW * g.C * g.KH * g.KW < 16 * kSerialWork ? kSerial : threads;
  const TilePlan plan = tile_plan(a, workers.size());
  const int64_t columns = 2 * plan.pairs, offsets = whole_tiles(plan.steps, 8), places = whole_tiles(g.W, 8);
  const int64_t outputs = plan.pairs * kPairOutputs, weight = columns * plan.steps * kTileElements / 2;
  float* scratch = static_cast<float*>(thread_scratch(
      static_cast<size_t>(2 * (offsets + places) + outputs + weight + workers.size() * plan.worker) *
      sizeof(float)));
  int64_t *offset = reinterpret_cast<int64_t*>(scratch), *place = offset + offsets;
  float* bias = scratch + 2 * (offsets + places);
  BFloat16* right = reinterpret_cast<BFloat16*>(bias + outputs);
  float* own = bias + outputs + weight;
  tap_offsets(g, plan.stage, plan.plane, offset);
  column_places(g, plan.stage, plan.plane, place);
  for (int64_t k = 0; k < outputs; k += kLanes) {
    const int64_t n = smaller(g.C_out - k, kLanes);
    store(bias + k, a.bias == nullptr || n <= 0
                        ? zero()
                        : load_first(static_cast<const BFloat16*>(a.bias) + k, static_cast<int>(n)));
  }
  parallel_tasks(workers, tiles_of(g.C_out, kTileHeight) * plan.stage.chunks, [&](int64_t task, int64_t) {
    const int64_t column = task / plan.stage.chunks, chunk = task % plan.stage.chunks;
    pack_tile_weight(g, static_cast<const BFloat16*>(a.weight), chunk, column * kTileHeight,
                     right + (column * plan.steps + chunk * plan.stage.taps) * kTileElements);
  });
  parallel_tasks(
      workers, plan.image_groups * plan.row_groups * plan.shares, [&](int64_t task, int64_t worker) {
        tile_task(a, plan, TileShared{offset, place, right, bias}, task, own + worker * plan.worker);
      });
}

inline constexpr ImplicitGemmTiles kImplicitGemmTiles = {implicit_gemm_tiles};
#else
inline constexpr ImplicitGemmTiles kImplicitGemmTiles = {nullptr};
#endif
