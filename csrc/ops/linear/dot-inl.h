// Computes dropout(activation(x weight^T + bias)) from the plain weight.
// Tiles of the output are handed to the threads one by one; a tile's sums stay in cache over blocks of K and
// end in one pass of bias, activation and dropout. Writes what the activation was applied to if backward
// wants it.
#include "common/cpu/dot-inl.h"
#include "common/cpu/math-inl.h"
#include "common/cpu/math_activation-inl.h"
#include "common/cpu/philox-inl.h"
#include "ops/linear/activation-inl.h"

constexpr int64_t kMostRows = 96, kMostColumns = 64;

struct Tiles {
  int64_t rows, columns, down, across, depth;
};

FASTDL_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
Tiles tiles_of(const LinearForward& args, int64_t threads) {
  Tiles t;
  t.down = divide_up(args.M, kMostRows);
  t.rows = divide_up(divide_up(args.M, t.down), kDotRows) * kDotRows;
  t.down = divide_up(args.M, t.rows);
  // Four tiles a thread even out what the threads take; a tile below 2^17 products is not worth a hand-over.
  const int64_t wanted = divide_up(4 * threads, t.down);
  const int64_t least = ((int64_t{1} << 17) / (t.rows * (args.K + 1)) + 1);
  int64_t columns = divide_up(args.N, wanted);
  columns = columns < least ? least : columns;
  columns = columns > kMostColumns ? kMostColumns : columns;
  t.columns = divide_up(columns, kDotColumns) * kDotColumns;
  t.across = divide_up(args.N, t.columns);
  // Of each row of x and of weight 2 KB at a time: used again from cache. With one row of blocks nothing is.
  constexpr int64_t kDepth = 2048 / sizeof(T);
  t.depth = args.M <= kDotRows ? args.K : kDepth;
  return t;
}

// bias, activation and dropout of one tile's row: n sums whose first is element `begin` of the output.
template <Activation kActivation, class T>
void finish_row(const float* sums, const T* bias, int64_t begin, int64_t n, const Dropout& dropout, T* output,
                T* pre) {
  typedef Walk<T> W;
  DropoutWords<kMostColumns> words;
  if (dropout.present) words.draw(dropout, begin, n);
  const Vec scale = constant<Vec>(dropout.scale);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int m = static_cast<int>(n - i < kLanes ? n - i : kLanes);
    Vec v = m == kLanes ? load(sums + i) : load_first(sums + i, m);
    if (bias != nullptr) v += W::get(bias + i, m);
    if (pre != nullptr) W::put(pre + i, v, m);
    v = activate<kActivation>(v);
    if (dropout.present) v = drop(v, words.of(i), dropout.threshold, scale);
    W::put(output + i, v, m);
  }
}

template <class T>
using FinishRow = void (*)(const float*, const T*, int64_t, int64_t, const Dropout&, T*, T*);
template <class T>
constexpr FinishRow<T> kFinishRow[kActivations] = {
    finish_row<Activation::kNone, T>,     finish_row<Activation::kRelu, T>, finish_row<Activation::kGelu, T>,
    finish_row<Activation::kGeluTanh, T>, finish_row<Activation::kSilu, T>, finish_row<Activation::kTanh, T>,
    finish_row<Activation::kSigmoid, T>};

template <class T>
void dot_forward(const LinearForward& args, const ThreadPool& pool) {
  const int64_t threads = pool.size();
  const Tiles t = tiles_of<T>(args, threads);
  const int64_t M = args.M, N = args.N, K = args.K, tile_floats = t.rows * t.columns;
  float* scratch =
      static_cast<float*>(thread_scratch(static_cast<size_t>(threads * tile_floats) * sizeof(float)));
  const FinishRow<T> finish = kFinishRow<T>[static_cast<int>(args.activation)];
  parallel_tasks(pool, t.down * t.across, [&](int64_t task, int64_t worker) {
    const int64_t row = task % t.down * t.rows, column = task / t.down * t.columns;
    const int64_t rows = M - row < t.rows ? M - row : t.rows;
    const int64_t columns = N - column < t.columns ? N - column : t.columns;
    const T* x = static_cast<const T*>(args.x) + row * K;
    const T* weight = static_cast<const T*>(args.weight) + column * K;
    float* sums = scratch + worker * tile_floats;
    dot_product(false, rows, columns, x, K, weight, K, K < t.depth ? K : t.depth, sums, t.columns);
    for (int64_t k = t.depth; k < K; k += t.depth)
      dot_product(true, rows, columns, x + k, K, weight + k, K, K - k < t.depth ? K - k : t.depth, sums,
                  t.columns);
    const T* bias = args.bias == nullptr ? nullptr : static_cast<const T*>(args.bias) + column;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t begin = (row + i) * N + column;
      T* pre = args.pre == nullptr ? nullptr : static_cast<T*>(args.pre) + begin;
      finish(sums + i * t.columns, bias, begin, columns, args.dropout, static_cast<T*>(args.output) + begin,
             pre);
    }
  });
}

typedef void (*DotForward)(const LinearForward&, const ThreadPool&);
// By dtype; no kernel for float64. AVX512-BF16 multiplies bf16 alone.
constexpr DotForward kDotForward[] = {nullptr,
#if FASTDL_ISA == FASTDL_ISA_AVX512BF16
                                      avx512::kDotForward[1], avx512::kDotForward[2],
#else
                                      dot_forward<float>, dot_forward<Float16>,
#endif
                                      dot_forward<BFloat16>};
