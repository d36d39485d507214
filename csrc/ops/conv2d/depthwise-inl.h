// activation(scale conv2d(x, weight) + bias + residual) where an output channel reads one input channel;
// fp32 inside. A task is some planes of contiguous images; a vector holds neighbouring outputs. Planes whose
// windows lie a lane apart are read where they are, the padding masked; rows of others are staged in L1 with
// their padding, a part of a plane at a time. Saves nothing.

// clang-format off: in the order of use
#include "ops/conv_relu_maxpool/bias_relu_maxpool_window-inl.h"
#include "common/cpu/math-inl.h"
#include "common/cpu/math_activation-inl.h"
#include "ops/conv2d/epilogue-inl.h"
#include "ops/conv_relu_maxpool/direct_input-inl.h"
#include "ops/conv_relu_maxpool/task-inl.h"
#include "ops/conv2d/depthwise_stage-inl.h"
#include "ops/conv2d/depthwise_tile-inl.h"
// clang-format on

struct DepthwisePlan {
  ConvGeometry plane;  // of one input channel
  StagedInput input;   // of one input channel
  int64_t taps, multiplier;
  int64_t rows;            // output rows of a part
  int64_t staged, worker;  // floats of a part's rows; of them and a channel's weight
  bool in_place;           // planes are read where they are
  const float* zeros;      // a row of padding
  const VecInt* inside;    // [2][KW], of the first vector of a row and of its last
  const int32_t* column;   // [KW] of a tap in a row that is read where it is
};

// The vector of outputs at `at` of any kernel; `staged` is its window.
template <class T>
FASTDL_INLINE void depthwise_vector(const DepthwisePlan& plan, const float* staged, const float* weight,
                                    const DepthwiseFinish<T>& f, int64_t at) {
  Vec sum[1] = {};
  for (int64_t t = 0; t < plan.taps; ++t)
    accumulate(sum[0], set1(weight[t]), load(staged + plan.input.offset[t]));
  finish_sums(sum, f, at);
}

constexpr int kRowsStaged = 4;  // of a tile

// Output rows [rows.begin, rows.end) from the rows staged for them. What is stored past the end of a row is
// overwritten later: rows are in order, vectors from right to left. The last rows are computed once more
// where they fill no tile.
template <int kHeight, int kStride, class T>
void staged_rows(const DepthwisePlan& plan, const float* staged, const float* weight,
                 const DepthwiseFinish<T>& f, Range rows) {
  const int64_t CW = plan.plane.CW, right = (CW - 1) / kLanes * kLanes;
  const int64_t step = plan.plane.stride[0] * plan.input.row;
  constexpr int some = kHeight == 0 ? 1 : kRowsStaged,
                windows = (some - 1) * kStride + kHeight;  // 0: any kernel
  for (int64_t r = rows.begin; r < rows.end; r += some) {
    const int64_t first = smaller(r, rows.end - some);
    const float* from = staged + (first - rows.begin) * step;
    if constexpr (kHeight == 0) {
      for (int64_t j = right; j >= 0; j -= kLanes)
        depthwise_vector(plan, from + j, weight, f, first * CW + j);
    } else {
      const float* row[windows];
      for (int i = 0; i < windows; ++i) row[i] = from + i * plan.input.row;
      for (int64_t j = right; j >= 0; j -= kLanes)
        depthwise_tile<kHeight, kStride, 1, some, false>(row, plan.plane.KW, plan.input.offset, j, nullptr,
                                                         weight, f, first * CW + j);
    }
  }
}

// All rows of a plane that is read where it is: 7 at a time, as images of 7, 14, 28 ... rows are even in.
constexpr int kRowsInPlace = 7;

template <int kHeight, int kStride>
FASTDL_INLINE void rows_in_place(const DepthwisePlan& plan, const float* x, const float* weight,
                                 const DepthwiseFinish<float>& f) {
  const ConvGeometry& g = plan.plane;
  const int64_t right = (g.CW - 1) / kLanes * kLanes;
  constexpr int windows = (kRowsInPlace - 1) * kStride + kHeight;
  const float* row[windows];
  const auto tile = [&](auto kernel, int64_t j, const VecInt* inside, int64_t at) {
    kernel(row, g.KW, plan.column, j, inside, weight, f, at + j);
  };
  for (int64_t r = 0; r < g.CH; r += kRowsInPlace) {
    const int64_t first = smaller(r, g.CH - kRowsInPlace), at = first * g.CW;
    for (int i = 0; i < windows; ++i) {
      const int64_t h = first * kStride - g.padding[0] + i;
      row[i] = h >= 0 && h < g.H ? x + h * g.W : plan.zeros;
    }
    // The rows of the next tile, or of the next plane, are fetched while this one is multiplied.
    const float* next = x + (first * kStride - g.padding[0] + windows) * g.W;
    for (int64_t i = 0; i < kRowsInPlace * kStride * g.W; i += 16) __builtin_prefetch(next + i);
    constexpr auto masked = depthwise_tile<kHeight, kStride, kStride, kRowsInPlace, true, float>;
    constexpr auto whole = depthwise_tile<kHeight, kStride, kStride, kRowsInPlace, false, float>;
    if (right > 0) tile(masked, right, plan.inside + g.KW, at);
    for (int64_t j = right - kLanes; j > 0; j -= kLanes) tile(whole, j, nullptr, at);
    tile(masked, 0, plan.inside, at);
  }
}

template <class T>
FASTDL_INLINE void staged_channel(const DepthwisePlan& plan, const float* staged, const float* weight,
                                  const DepthwiseFinish<T>& f, Range rows) {
  const ConvGeometry& g = plan.plane;
  const bool tiles = g.dilation[0] == 1 && rows.end - rows.begin >= kRowsStaged;
#define FASTDL_DEPTHWISE(height, stride_)                \
  if (tiles && g.KH == height && g.stride[0] == stride_) \
  return staged_rows<height, stride_>(plan, staged, weight, f, rows)
  FASTDL_DEPTHWISE(3, 1);
  FASTDL_DEPTHWISE(3, 2);
  FASTDL_DEPTHWISE(5, 1);
  FASTDL_DEPTHWISE(5, 2);
  FASTDL_DEPTHWISE(7, 1);
  FASTDL_DEPTHWISE(7, 2);
#undef FASTDL_DEPTHWISE
  staged_rows<0, 0>(plan, staged, weight, f, rows);
}

// Whether what the vectors of a plane reach is there; `before` and `ahead` of its first element.
FASTDL_INLINE bool within(const ConvGeometry& g, int64_t before, int64_t ahead) {
  const int64_t right = (g.CW - 1) / kLanes * kLanes;
  return before >= g.padding[1] &&
         ahead >= (g.H - 1) * g.W + (right + kLanes) * g.stride[1] + g.KW - 1 - g.padding[1];
}

// What follows the sums of output channel k, whose values begin at `image`.
template <class T>
FASTDL_INLINE DepthwiseFinish<T> depthwise_finish(const Conv2dForward& a, int64_t CW, int64_t k,
                                                  int64_t image, int64_t writable) {
  const T *scale = static_cast<const T*>(a.scale), *bias = static_cast<const T*>(a.bias);
  return {scale == nullptr ? 1 : to_float(scale[k]),
          bias == nullptr ? 0 : to_float(bias[k]),
          lowest(a.activation),
          highest(a.activation),
          a.residual == nullptr ? nullptr : static_cast<const T*>(a.residual) + image,
          static_cast<T*>(a.output) + image,
          CW,
          writable};
}

// Every output channel of input channel c: `plane` of N * C, before others up to `last`.
template <int kHeight, int kStride>
void plane_in_place(const Conv2dForward& a, const DepthwisePlan& plan, int64_t c, int64_t plane,
                    int64_t last) {
  const ConvGeometry& g = plan.plane;
  const int64_t size = g.CH * g.CW;
  const float* x = static_cast<const float*>(a.x) + plane * g.H * g.W;
  for (int64_t m = 0; m < plan.multiplier; ++m) {
    const int64_t k = c * plan.multiplier + m, image = (plane * plan.multiplier + m) * size;
    const DepthwiseFinish<float> finish =
        depthwise_finish<float>(a, g.CW, k, image, last * plan.multiplier * size - image);
    rows_in_place<kHeight, kStride>(plan, x, static_cast<const float*>(a.weight) + k * plan.taps, finish);
    if (!is_rectified(a.activation)) activate_values(finish.output, size, a.activation);
  }
}

// The same from rows that are staged.
template <class T>
void plane_staged(const Conv2dForward& a, const DepthwisePlan& plan, int64_t c, int64_t plane, int64_t last,
                  float* scratch) {
  const ConvGeometry& g = plan.plane;
  const int64_t size = g.CH * g.CW, before = plane * g.H * g.W;
  const int64_t ahead = a.conv.N * a.conv.C * g.H * g.W - before;
  const T *x = static_cast<const T*>(a.x) + before, *weights = static_cast<const T*>(a.weight);
  const bool in_order = plan.multiplier == 1 || plan.rows >= g.CH;
  float* weight = scratch + plan.staged;
  for (Range rows = {0, smaller(plan.rows, g.CH)}; rows.begin < g.CH;
       rows = {rows.end, smaller(rows.end + plan.rows, g.CH)}) {
    stage_part(x, ahead, g, plan.input, input_rows(g, rows), scratch);
    for (int64_t m = 0; m < plan.multiplier; ++m) {
      const int64_t k = c * plan.multiplier + m, image = (plane * plan.multiplier + m) * size;
      for (int64_t t = 0; t < plan.taps; ++t) weight[t] = to_float(weights[k * plan.taps + t]);
      const DepthwiseFinish<T> finish =
          depthwise_finish<T>(a, g.CW, k, image, in_order ? last * plan.multiplier * size - image : size);
      staged_channel(plan, scratch, weight, finish, rows);
      if (!is_rectified(a.activation))
        activate_values(finish.output + rows.begin * g.CW, (rows.end - rows.begin) * g.CW, a.activation);
    }
  }
}

template <class T>
FASTDL_INLINE void depthwise_plane(const Conv2dForward& a, const DepthwisePlan& plan, int64_t c,
                                   int64_t plane, int64_t last, float* scratch) {
  const ConvGeometry& g = plan.plane;
  const int64_t before = plane * g.H * g.W, ahead = a.conv.N * a.conv.C * g.H * g.W - before;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (plan.in_place && within(g, before, ahead)) {
      const auto run = g.stride[0] == 1 ? (g.KH == 3   ? plane_in_place<3, 1>
                                           : g.KH == 5 ? plane_in_place<5, 1>
                                                       : plane_in_place<7, 1>)
                                        : (g.KH == 3   ? plane_in_place<3, 2>
                                           : g.KH == 5 ? plane_in_place<5, 2>
                                                       : plane_in_place<7, 2>);
      return run(a, plan, c, plane, last);
    }
  }
  plane_staged<T>(a, plan, c, plane, last, scratch);
}

// What planes that are read where they are share: masks, offsets and zeros.
FASTDL_INLINE int64_t table_floats(const ConvGeometry& g) {
  return 2 * g.KW * kLanes + rounded_up(g.KW, 16) + 2 * kLanes +
         rounded_up((g.CW + kLanes) * g.stride[1] + g.KW, 16);
}

FASTDL_INLINE void fill_table(float* table, DepthwisePlan* plan) {
  const ConvGeometry& g = plan->plane;
  std::memset(table, 0, static_cast<size_t>(table_floats(g)) * sizeof(float));
  VecInt* inside = reinterpret_cast<VecInt*>(table);
  int32_t* column = reinterpret_cast<int32_t*>(inside + 2 * g.KW);
  for (int64_t kw = 0; kw < g.KW; ++kw) {
    column[kw] = static_cast<int32_t>(kw - g.padding[1]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t left = (g.stride[1] == 2 ? 2 * even_lane(lane) : lane) + column[kw],
                    right = left + (g.CW - 1) / kLanes * kLanes * g.stride[1];
      inside[kw][lane] = left >= 0 && left < g.W ? -1 : 0;
      inside[g.KW + kw][lane] = right >= 0 && right < g.W ? -1 : 0;
    }
  }
  plan->inside = inside, plan->column = column;
  plan->zeros = reinterpret_cast<float*>(column) + rounded_up(g.KW, 16) + kLanes;
}

template <class T>
void depthwise_conv2d(const Conv2dForward& a, const ThreadPool& threads) {
  DepthwisePlan plan = {};
  ConvGeometry& g = plan.plane = a.conv;
  const int64_t planes = g.N * g.C, size = g.CH * g.CW;
  plan.taps = g.KH * g.KW, plan.multiplier = g.C_out / g.C;
  // Staging takes about as long as the products: half of what is too little elsewhere is enough.
  const ThreadPool& pool = g.N * g.C_out * size * plan.taps < kSerialWork / 2 ? kSerial : threads;
  g.N = g.C = g.C_out = g.groups = 1;
  plan.input = stage_sizes(g);
  // Every vector with an element of a row is stored whole, and one of zeros after the row.
  const int64_t row = rounded_up(g.padding[1] + (g.W + g.stride[1] - 1) / g.stride[1], 4);
  plan.input.length = (plan.input.length < row ? row : plan.input.length) + 2 * kLanes;
  plan.input.row = plan.input.slots * plan.input.length;
  const int64_t span = (g.KH - 1) * g.dilation[0] + 1, part = kStagedPart / plan.input.row;
  plan.rows = part > span ? (part - span) / g.stride[0] + 1 : 1;
  // Blocks read up to the end of their last vector.
  plan.staged =
      rounded_up(((smaller(plan.rows, g.CH) - 1) * g.stride[0] + span) * plan.input.row + kLanes, 16);
  plan.worker = plan.staged + rounded_up(plan.taps, 16);
  const bool dense = g.stride[0] == g.stride[1] && g.stride[0] <= 2 && g.dilation[0] * g.dilation[1] == 1;
  // Only the first and the last vector of a row may reach into the padding.
  const int64_t inner = (g.CW - 1) / kLanes * kLanes - 1;
  const bool inside = g.padding[1] <= kLanes && inner * g.stride[1] + g.KW - 1 - g.padding[1] < g.W;
  plan.in_place = sizeof(T) == sizeof(float) && dense && inside && g.CH >= kRowsInPlace &&
                  (g.KH == 3 || g.KH == 5 || g.KH == 7);
  const int64_t offsets = rounded_up(plan.taps, 16);
  const int64_t shared = offsets + rounded_up(plan.in_place ? table_floats(g) : 0, 16);
  float* scratch = static_cast<float*>(
      thread_scratch(static_cast<size_t>(shared + pool.size() * plan.worker) * sizeof(float)));
  int32_t* offset = reinterpret_cast<int32_t*>(scratch);
  stage_offsets(g, plan.input, offset);
  plan.input.offset = offset;
  if (plan.in_place) fill_table(scratch + offsets, &plan);
  std::memset(scratch + shared, 0, static_cast<size_t>(pool.size() * plan.worker) * sizeof(float));
  const int64_t some = size < kStagedPart ? kStagedPart / size : 1;
  parallel_tasks(pool, (planes + some - 1) / some, [&](int64_t task, int64_t worker) {
    const int64_t last = smaller(planes, (task + 1) * some);
    int64_t c = task * some % a.conv.C;
    for (int64_t plane = task * some; plane < last; ++plane) {
      depthwise_plane<T>(a, plan, c, plane, last, scratch + shared + worker * plan.worker);
      c = c + 1 < a.conv.C ? c + 1 : 0;
    }
  });
}

// By DType; fp64 is not served.
inline constexpr void (*kDepthwise[4])(const Conv2dForward&, const ThreadPool&) = {
    nullptr, depthwise_conv2d<float>, depthwise_conv2d<Float16>, depthwise_conv2d<BFloat16>};
