// Some rows of one vector of outputs of a depthwise convolution, one thread: an input vector is read once for
// every row whose window it is in, from rows that lie anywhere. Saves nothing.

// What follows the sums of an output channel.
template <class T>
struct DepthwiseFinish {
  float scale, bias;
  float lowest, highest;  // what a value is limited to
  const T* residual;      // [CH * CW] or null
  T* output;              // [CH * CW]
  int64_t CW;
  int64_t writable;  // elements of output: those after its own are written later
};

// Of kRows sums a row apart, the first one output[at].
template <int kRows, class T>
FASTDL_INLINE void finish_sums(const Vec (&sum)[kRows], const DepthwiseFinish<T>& finish, int64_t at) {
  const DepthwiseFinish<T> f = finish;  // by value: a reference would be read again after every store
  const Vec scale = set1(f.scale), bias = set1(f.bias), lowest = set1(f.lowest), highest = set1(f.highest);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i, at += f.CW) {
    Vec v = sum[i] * scale + bias;
    if (f.residual != nullptr) v += load_values(f.residual + at, f.writable - at);
    store_values(f.output + at, min(highest, max(lowest, v)), f.writable - at);
  }
}

// `row`: the input rows of the outputs' windows; `offset` of a tap in them, of outputs kStep elements apart;
// `weight` [kHeight][KW]; kMasked: only the lanes `inside` of a column of taps are read, others are zero.
// A function of its own: inlined, its sums and addresses share registers with the loops around it.
template <int kHeight, int kStride, int kStep, int kRows, bool kMasked, class T>
__attribute__((noinline)) void depthwise_tile(const float* const* row, int64_t KW, const int32_t* offset,
                                              int64_t j, const VecInt* inside, const float* weight,
                                              const DepthwiseFinish<T>& f, int64_t at) {
  Vec sum[kRows] = {};
#pragma GCC unroll 1
  for (int64_t kw = 0; kw < KW; ++kw) {
    Vec w[kHeight];
#pragma GCC unroll 8
    for (int kh = 0; kh < kHeight; ++kh) w[kh] = set1(weight[kh * KW + kw]);
    const int64_t from = j * kStep + offset[kw];
#pragma GCC unroll 32
    for (int i = 0; i < (kRows - 1) * kStride + kHeight; ++i) {
      Vec v = kStep == 1 ? load(row[i] + from) : load_even(row[i] + from);
      if constexpr (kMasked) v = reinterpret_cast<Vec>(reinterpret_cast<VecInt>(v) & inside[kw]);
#pragma GCC unroll 8
      for (int kh = 0; kh < kHeight; ++kh)
        if (i >= kh && (i - kh) % kStride == 0 && (i - kh) / kStride < kRows)
          accumulate(sum[(i - kh) / kStride], w[kh], v);
    }
  }
  if constexpr (kStep == 2)
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) sum[i] = even_in_order(sum[i]);
  finish_sums(sum, f, at);
}
