// Prints the most multiply-adds this CPU does in registers, in GF/s: "fp32 <value>" and where it can "bf16 <value>".
// Usage: fma_peak <threads>. Built by machine.py with -march=native, or -mavx2 -mfma for a limited run.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
#include <immintrin.h>
#endif
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__AVX512F__)
constexpr int kBytes = 64, kAccumulators = 24;
#elif defined(__AVX2__)
constexpr int kBytes = 32, kAccumulators = 12;
#else
constexpr int kBytes = 16, kAccumulators = 24;
#endif
typedef float Vec __attribute__((vector_size(kBytes)));
constexpr long kSteps = 500000;

// Each loop returns the flops it did; `sink` keeps them from being dropped. Every loop over the accumulators is
// unrolled: one that is not would keep them in memory, at a third of the peak.
static double fp32_loop(volatile float* sink) {
  Vec sum[kAccumulators], a = Vec{} + *sink, b = Vec{} + *sink;
  // a volatile read each: equal accumulators would be computed once
#pragma GCC unroll 24
  for (int j = 0; j < kAccumulators; ++j) sum[j] = Vec{} + *sink;
  for (long i = 0; i < kSteps; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kAccumulators; ++j) sum[j] = sum[j] * a + b;
    asm volatile("" : "+m"(*sink));
  }
#pragma GCC unroll 24
  for (int j = 0; j < kAccumulators; ++j) *sink = *sink + sum[j][0];
  return 2.0 * kSteps * kAccumulators * (kBytes / 4);
}

#ifdef __AVX512BF16__
static double bf16_loop(volatile float* sink) {
  __m512 sum[kAccumulators];
#pragma GCC unroll 24
  for (int j = 0; j < kAccumulators; ++j) sum[j] = _mm512_set1_ps(*sink);
  const __m512bh a = (__m512bh)_mm512_set1_ps(*sink), b = (__m512bh)_mm512_set1_ps(*sink);
  for (long i = 0; i < kSteps; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kAccumulators; ++j) sum[j] = _mm512_dpbf16_ps(sum[j], a, b);
    asm volatile("" : "+m"(*sink));
  }
#pragma GCC unroll 24
  for (int j = 0; j < kAccumulators; ++j) *sink = *sink + _mm512_reduce_add_ps(sum[j]);
  return 2.0 * kSteps * kAccumulators * 32;
}
#endif

#ifdef __AMX_BF16__
static double amx_loop(volatile float* sink) {
  constexpr long kTileSteps = kSteps / 4;
  alignas(64) unsigned char config[64] = {1};
  for (int t = 0; t < 8; ++t) {
    config[16 + 2 * t] = 64;  // bytes in a row
    config[48 + t] = 16;      // rows
  }
  if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18)) return 0;
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (long i = 0; i < kTileSteps; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    asm volatile("" : "+m"(*sink));
  }
  _tile_release();
  return 2.0 * kTileSteps * 4 * 16 * 16 * 32;
}
#endif

template <class Loop>
static void report(const char* name, int threads, Loop loop) {
  double best = 0;
  for (int repeat = 0; repeat < 40; ++repeat) {
    double flops = 0;
    const auto begin = std::chrono::steady_clock::now();
#pragma omp parallel num_threads(threads) reduction(+ : flops)
    {
      volatile float sink = 0;
      flops += loop(&sink);
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (flops / seconds.count() > best) best = flops / seconds.count();
  }
  std::printf("%s %.1f\n", name, best / 1e9);
}

int main(int, char** argv) {
  const int threads = std::atoi(argv[1]);
  report("fp32", threads, fp32_loop);
#ifdef __AMX_BF16__
  report("bf16", threads, amx_loop);
#elif defined(__AVX512BF16__)
  report("bf16", threads, bf16_loop);
#endif
}
