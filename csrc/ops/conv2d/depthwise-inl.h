// activation(scale conv2d(x, weight) + bias + residual) where an output channel reads one input channel;
// fp32 inside. A task is some planes of contiguous images: rows are staged in L1 with their padding, a part
// of a plane at a time, and a vector holds neighbouring outputs. Saves nothing.

// clang-format off: in the order of use
#include "ops/conv_relu_maxpool/bias_relu_maxpool_window-inl.h"
#include "common/cpu/math-inl.h"
#include "common/cpu/math_activation-inl.h"
#include "ops/conv2d/epilogue-inl.h"
#include "ops/conv_relu_maxpool/direct_input-inl.h"
#include "ops/conv_relu_maxpool/task-inl.h"
// clang-format on

struct DepthwisePlan {
  ConvGeometry plane;  // of one input channel
  StagedInput input;   // of one input channel
  int64_t taps, multiplier;
  int64_t rows;            // output rows of a part
  int64_t staged, worker;  // floats of a part's rows; of them and a channel's weight
};

// What follows the sums of an output channel.
template <class T>
struct DepthwiseFinish {
  float scale, bias;
  const T* residual;  // [CH * CW] or null
  bool relu;
  T* output;  // [CH * CW]
};

constexpr int64_t kStagedPart = 4096;  // floats: half of an L1 of 32 KiB

// One row of the input, `readable` elements before the end of all. The padding before it is zero already.
template <class T>
FASTDL_INLINE void stage_row(const T* row, int64_t readable, const ConvGeometry& g, const StagedInput& s,
                             float* to) {
  const int64_t padding = g.padding[1];
  if (g.stride[1] > 2 || readable < g.W + 2 * kLanes) return stage_channel(row, 1, s, g, to);
  // Whole vectors, then zeros over what lies past the row: masked loads take some 15 cycles on Zen.
  if (g.stride[1] == 1) {
    for (int64_t j = 0; j < g.W; j += kLanes) store(to + padding + j, load(row + j));
    return store(to + padding + g.W, zero());
  }
  // The first slot holds the even elements where the padding is even, else the odd ones.
  float* const second = s.slots == 2 ? to + s.length : nullptr;
  float* even = padding % 2 == 0 ? to : second;
  float* odd = padding % 2 == 0 ? second : to;
  if (even != nullptr) even += padding / 2;
  if (odd != nullptr) odd += (padding + 1) / 2;
  for (int64_t j = 0; j < (g.W + 1) / 2; j += kLanes) {
    Vec of_even, of_odd;
    load_pairs(row + 2 * j, kLanes, of_even, of_odd);
    if (even != nullptr) store(even + j, of_even);
    if (odd != nullptr) store(odd + j, of_odd);
  }
  if (even != nullptr) store(even + (g.W + 1) / 2, zero());
  if (odd != nullptr) store(odd + g.W / 2, zero());
}

// Rows [rows.begin, rows.end) of the padded input.
template <class T>
void stage_part(const T* plane, int64_t readable, const ConvGeometry& g, const StagedInput& s, Range rows,
                float* staged) {
  const int64_t ahead = (rows.end - rows.begin) * g.W;
  for (int64_t h = rows.begin; h < rows.end; ++h, staged += s.row) {
    // What the next part or plane reads is fetched while this one is multiplied.
    for (int64_t i = 0; i < g.W; i += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(plane + h * g.W + ahead + i);
    if (h >= 0 && h < g.H)
      stage_row(plane + h * g.W, readable - h * g.W, g, s, staged);
    else
      std::memset(staged, 0, static_cast<size_t>(s.row) * sizeof(float));
  }
}

// What follows kCount sums a row apart, the first one output[at].
template <int kCount, class T>
FASTDL_INLINE void finish_sums(const Vec (&sum)[kCount], const ConvGeometry& g, const DepthwiseFinish<T>& f,
                               int64_t at) {
  const Vec scale = set1(f.scale), bias = set1(f.bias);
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) {
    const int64_t first = at + i * g.CW, left = g.CH * g.CW - first;
    Vec v = sum[i] * scale + bias;
    if (f.residual != nullptr) v += load_values(f.residual + first, left);
    if (f.relu) v = closed_where_negative<true, T>(v);
    store_values(f.output + first, v, left);
  }
}

// Any kernel: a vector of outputs, the first one output[at]; `staged` is its window.
template <class T>
FASTDL_INLINE void depthwise_vector(const DepthwisePlan& plan, const float* staged, const float* weight,
                                    const DepthwiseFinish<T>& f, int64_t at) {
  Vec sum[1] = {};
  for (int64_t t = 0; t < plan.taps; ++t)
    accumulate(sum[0], set1(weight[t]), load(staged + plan.input.offset[t]));
  finish_sums(sum, plan.plane, f, at);
}

constexpr int kTileRows = 4;

// The same, kTileRows rows of one: a vector of the input serves every row whose window it is in.
template <int kHeight, int kStride, class T>
FASTDL_INLINE void depthwise_tile(const DepthwisePlan& plan, const float* staged, const float* weight,
                                  const DepthwiseFinish<T>& f, int64_t at) {
  const int64_t KW = plan.plane.KW, row = plan.input.row;
  Vec sum[kTileRows] = {};
  for (int64_t kw = 0; kw < KW; ++kw) {
    Vec w[kHeight];
#pragma GCC unroll 8
    for (int kh = 0; kh < kHeight; ++kh) w[kh] = set1(weight[kh * KW + kw]);
    const float* from = staged + plan.input.offset[kw];
#pragma GCC unroll 16
    for (int i = 0; i < (kTileRows - 1) * kStride + kHeight; ++i, from += row) {
      const Vec v = load(from);
#pragma GCC unroll 8
      for (int kh = 0; kh < kHeight; ++kh)
        if (i >= kh && (i - kh) % kStride == 0 && (i - kh) / kStride < kTileRows)
          accumulate(sum[(i - kh) / kStride], w[kh], v);
    }
  }
  finish_sums(sum, plan.plane, f, at);
}

// Output rows [rows.begin, rows.end) from the rows staged for them. What is stored past the end of a row is
// overwritten later: rows are in order, vectors from right to left. The last rows are computed once more
// where they fill no tile.
template <int kHeight, int kStride, class T>
void depthwise_rows(const DepthwisePlan& plan, const float* staged, const float* weight,
                    const DepthwiseFinish<T>& f, Range rows) {
  const int64_t CW = plan.plane.CW, right = (CW - 1) / kLanes * kLanes;
  const int64_t step = plan.plane.stride[0] * plan.input.row;
  constexpr int64_t some = kHeight == 0 ? 1 : kTileRows;
  for (int64_t r = rows.begin; r < rows.end; r += some) {
    const int64_t first = smaller(r, rows.end - some);
    for (int64_t j = right; j >= 0; j -= kLanes) {
      const float* from = staged + (first - rows.begin) * step + j;
      if constexpr (kHeight == 0)
        depthwise_vector(plan, from, weight, f, first * CW + j);
      else
        depthwise_tile<kHeight, kStride>(plan, from, weight, f, first * CW + j);
    }
  }
}

template <class T>
FASTDL_INLINE void depthwise_channel(const DepthwisePlan& plan, const float* staged, const float* weight,
                                     const DepthwiseFinish<T>& f, Range rows) {
  const ConvGeometry& g = plan.plane;
  const bool tiles = g.dilation[0] == 1 && rows.end - rows.begin >= kTileRows;
#define FASTDL_DEPTHWISE(height, stride_)                \
  if (tiles && g.KH == height && g.stride[0] == stride_) \
  return depthwise_rows<height, stride_>(plan, staged, weight, f, rows)
  FASTDL_DEPTHWISE(3, 1);
  FASTDL_DEPTHWISE(3, 2);
  FASTDL_DEPTHWISE(5, 1);
  FASTDL_DEPTHWISE(5, 2);
  FASTDL_DEPTHWISE(7, 1);
  FASTDL_DEPTHWISE(7, 2);
#undef FASTDL_DEPTHWISE
  depthwise_rows<0, 0>(plan, staged, weight, f, rows);
}

// Every output channel of input channel `plane` of N * C.
template <class T>
void depthwise_plane(const Conv2dForward& a, const DepthwisePlan& plan, int64_t plane, float* scratch) {
  const ConvGeometry& g = plan.plane;
  const int64_t c = plane % a.conv.C, first = c * plan.multiplier, size = g.CH * g.CW;
  const T *x = static_cast<const T*>(a.x) + plane * g.H * g.W, *weights = static_cast<const T*>(a.weight);
  const T *scale = static_cast<const T*>(a.scale), *bias = static_cast<const T*>(a.bias);
  float* weight = scratch + plan.staged;
  for (Range rows = {0, smaller(plan.rows, g.CH)}; rows.begin < g.CH;
       rows = {rows.end, smaller(rows.end + plan.rows, g.CH)}) {
    stage_part(x, (a.conv.N * a.conv.C - plane) * g.H * g.W, g, plan.input, input_rows(g, rows), scratch);
    for (int64_t k = first; k < first + plan.multiplier; ++k) {
      const int64_t image = (plane / a.conv.C * a.conv.C_out + k) * size;
      for (int64_t t = 0; t < plan.taps; ++t) weight[t] = to_float(weights[k * plan.taps + t]);
      const DepthwiseFinish<T> finish = {
          scale == nullptr ? 1 : to_float(scale[k]), bias == nullptr ? 0 : to_float(bias[k]),
          a.residual == nullptr ? nullptr : static_cast<const T*>(a.residual) + image,
          a.activation == Activation::kRelu, static_cast<T*>(a.output) + image};
      depthwise_channel(plan, scratch, weight, finish, rows);
      activate_values(finish.output + rows.begin * g.CW, (rows.end - rows.begin) * g.CW, a.activation);
    }
  }
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
  const int64_t table = rounded_up(plan.taps, 16);
  float* scratch = static_cast<float*>(
      thread_scratch(static_cast<size_t>(table + pool.size() * plan.worker) * sizeof(float)));
  int32_t* offset = reinterpret_cast<int32_t*>(scratch);
  stage_offsets(g, plan.input, offset);
  plan.input.offset = offset;
  std::memset(scratch + table, 0, static_cast<size_t>(pool.size() * plan.worker) * sizeof(float));
  const int64_t some = size < kStagedPart ? kStagedPart / size : 1;
  parallel_tasks(pool, (planes + some - 1) / some, [&](int64_t task, int64_t worker) {
    for (int64_t plane = task * some; plane < smaller(planes, (task + 1) * some); ++plane)
      depthwise_plane<T>(a, plan, plane, scratch + table + worker * plan.worker);
  });
}

// By DType; fp64 is not served.
inline constexpr void (*kDepthwise[4])(const Conv2dForward&, const ThreadPool&) = {
    nullptr, depthwise_conv2d<float>, depthwise_conv2d<Float16>, depthwise_conv2d<BFloat16>};
