// What the diffusion kernels share: the coefficients of a sample, elements 16 bytes at a time, and their
// noise.
#pragma once
#include <initializer_list>

#include "common/cuda/scalar.cuh"
#include "common/normal.h"
#include "ops/diffusion/diffusion.h"

namespace fastdl::cuda {

constexpr int kThreads = 256;
// Elements of a 16-byte access.
template <class T>
constexpr int kWidth = 16 / static_cast<int>(sizeof(T));

FD_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
FD_DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// A row outside the table makes its sample NaN: an error would need a wait.
template <class A>
FD_DEVICE void load_coefficients(const TableRows& rows, int64_t sample, A (&c)[kColumns]) {
  const int64_t row = rows.row_of ? rows.row_of[sample * rows.row_stride] : rows.row;
  const bool inside = row >= 0 && row < rows.table_rows;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) c[i] = inside ? A(rows.table[row * kColumns + i]) : A(NAN);
}

template <class T, int N>
FD_DEVICE void load_elements(const void* tensor, int64_t at, fd::Compute<T> (&out)[N]) {
  const fd::Vector<T, N> v = fd::load_vector<N>(static_cast<const T*>(tensor) + at);
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = fd::to_compute(v.value[i]);
}

template <class T, int N>
FD_DEVICE void store_elements(void* tensor, int64_t at, const fd::Compute<T> (&values)[N]) {
  fd::Vector<T, N> v;
#pragma unroll
  for (int i = 0; i < N; ++i) v.value[i] = fd::from_compute<T>(values[i]);
  fd::store_vector(static_cast<T*>(tensor) + at, v);
}

// The deviates of elements `at` .. at + N - 1 in memory order; `at` is a multiple of N.
template <int N, class A>
FD_DEVICE void made_noise(const int64_t* seed, int64_t at, A (&n)[N]) {
  const uint64_t key = static_cast<uint64_t>(seed[0]), offset = static_cast<uint64_t>(seed[1]);
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    float four[4];
    normals(static_cast<uint64_t>(at + i) >> 2, key, offset, four);
    // Fewer than four: part of a counter's deviates.
    const bool late = N < 4 && at & 2, odd = N == 1 && at & 1;
    if (late) four[0] = four[2], four[1] = four[3];
    if (odd) four[0] = four[1];
#pragma unroll
    for (int k = 0; k < 4 && i + k < N; ++k) n[i + k] = four[k];
  }
}

// How elements are handed out: rows of blocks over the samples, or one run where all share a row.
struct Elements {
  int64_t samples, size;
  bool vectors;  // 16 bytes at a time; what is left of the one run, element by element
};

template <class T>
Elements elements_of(const TableRows& rows, int64_t samples, int64_t size, bool aligned) {
  if (!rows.row_of || rows.row_stride == 0) return {1, samples * size, aligned};
  return {samples, size, aligned && size % kWidth<T> == 0};
}

template <class T>
dim3 grid_of(const Elements& e) {
  const int64_t pieces = e.vectors ? (e.size + kWidth<T> - 1) / kWidth<T> : e.size;
  const int64_t blocks = pieces <= kThreads ? 1 : (pieces + kThreads - 1) / kThreads;
  return dim3(static_cast<unsigned>(blocks < 16384 ? blocks : 16384),
              static_cast<unsigned>(e.samples < 32768 ? e.samples : 32768));
}

// Which of a sample's pieces are a thread's: every `threads`-th from `thread` on.
struct Share {
  int64_t thread, threads;
};

// job.take<N>(element) for the pieces of N elements of one sample.
template <class T, class Job>
FD_DEVICE void for_pieces(const Elements& e, int64_t sample, const Share& share, Job& job) {
  const int64_t whole = e.vectors ? e.size / kWidth<T> * kWidth<T> : 0, first = sample * e.size;
  for (int64_t i = share.thread * kWidth<T>; i < whole; i += share.threads * kWidth<T>)
    job.template take<kWidth<T>>(first + i);
  for (int64_t i = whole + share.thread; i < e.size; i += share.threads) job.template take<1>(first + i);
}

// job.start(sample), then its pieces.
template <class T, class Job>
FD_DEVICE void for_elements(const Elements& e, Job& job) {
  const Share share{int64_t{blockIdx.x} * kThreads + threadIdx.x, int64_t{gridDim.x} * kThreads};
  for (int64_t sample = blockIdx.y; sample < e.samples; sample += gridDim.y) {
    job.start(sample);
    for_pieces<T>(e, sample, share, job);
  }
}

inline bool all_aligned(std::initializer_list<const void*> pointers) {
  bool all = true;
  for (const void* p : pointers) all &= fd::aligned(p, 16);
  return all;
}

}  // namespace fastdl::cuda
