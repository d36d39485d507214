// The product of two fp32 matrices, whichever way they lie: C[M, N] = A[M, K] B[K, N] + bias[N].
#pragma once
#include <cstdint>

namespace fastdl {

struct LinearProduct {
  int64_t M, N, K;
  const float *left, *right;
  const float* bias;  // null: none
  float* output;      // contiguous
  // In elements. One stride of each matrix is 1.
  int64_t left_row, left_depth, right_depth, right_column;
};

}  // namespace fastdl
