// C[kPanelRows, kGemmWidth] (+)= a panel of rows times a panel of columns, both packed: what every implicit
// GEMM of a convolution is made of. One thread. Saves nothing.
//
// A left panel holds kPanelRows rows, kLanes depths of a row in a run: packing copies, and a broadcast reads
// anywhere. A right panel is [depths][kGemmWidth].

constexpr int kPanelRows = 6;

// Depths of one running sum. A right panel of so many stays in L1.
constexpr int64_t kDepth = FASTDL_ISA >= FASTDL_ISA_AVX512 ? 128 : 256;

FASTDL_INLINE int64_t parts_of(int64_t n, int64_t part) { return (n + part - 1) / part; }

// The first n elements, 0 beyond; n may be anything.
template <class T>
FASTDL_INLINE Vec load_some(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : n > 0 ? load_first(p, static_cast<int>(n)) : zero();
}

template <bool kAdd>
__attribute__((noinline)) void multiply_panels(const float* left, const float* right, int64_t depths,
                                               float* c, int64_t c_row) {
  Vec sum[kPanelRows][kGemmVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kPanelRows; ++i) {
    __builtin_prefetch(c + i * c_row, 1);
#pragma GCC unroll 8
    for (int j = 0; j < kGemmVecs; ++j) sum[i][j] = zero();
  }
  const auto step = [&](const float* a, const float* b) __attribute__((always_inline)) {
    Vec across[kGemmVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kGemmVecs; ++j) across[j] = load(b + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kPanelRows; ++i) {
      const Vec down = set1(a[i * kLanes]);
#pragma GCC unroll 8
      for (int j = 0; j < kGemmVecs; ++j) accumulate(sum[i][j], down, across[j]);
    }
  };
#pragma GCC unroll 1
  for (; depths >= kLanes; depths -= kLanes) {
#pragma GCC unroll 16
    for (int s = 0; s < kLanes; ++s) step(left + s, right + s * kGemmWidth);
    left += kPanelRows * kLanes, right += kLanes * kGemmWidth;
  }
#pragma GCC unroll 1
  for (; depths > 0; --depths, ++left, right += kGemmWidth) step(left, right);
#pragma GCC unroll 8
  for (int i = 0; i < kPanelRows; ++i, c += c_row)
#pragma GCC unroll 8
    for (int j = 0; j < kGemmVecs; ++j) {
      float* const at = c + j * kLanes;
      store(at, kAdd ? load(at) + sum[i][j] : sum[i][j]);
    }
}
