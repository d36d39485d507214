// Scaled-dot-product attention (fastdl/ops/attention/schema.py): what every backend is given and must fill
// in.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace fastdl {

// Codes shared with fastdl/ops/attention/call.py.
enum class Causal : int { kNone = 0, kTopLeft = 1, kBottomRight = 2 };

// Element (b, h, l, d) of a tensor, in elements; 0 along what is broadcast. d of q, k, v has stride 1.
// Packed: b is 0.
struct AttentionStrides {
  int64_t b, h, l, d;
};

// What forward and backward share.
struct AttentionCall {
  int64_t B, H, H_kv;    // sequences, heads of q, heads of k and v; H is a multiple of H_kv
  int64_t L_q, L_k;      // dense: of every sequence; packed: rows in all
  int64_t D, D_v;        // of q and k, of v
  int64_t max_q, max_k;  // of one sequence; dense: L_q, L_k
  DType dtype;

  const void *q, *k, *v;
  AttentionStrides q_strides, k_strides, v_strides;

  // [B + 1], untrusted, of 32 or 64 bits in memory of the device; null: dense. Rows outside [0, L_q) or [0,
  // L_k) are never touched.
  const void *cu_seqlens_q, *cu_seqlens_k;
  bool cu_seqlens_64;

  const uint8_t* mask;  // [B, H, L_q, L_k], 0 hides the key; or null
  AttentionStrides mask_strides;
  const void* bias;  // [B, H, L_q, L_k], added to the scores; or null
  AttentionStrides bias_strides;
  const float* alibi_slopes;  // [H] or [B, H]; or null
  int64_t alibi_stride_b;     // H or 0
  const float* sink;          // [H] or null
  const int64_t* seed;        // of the dropout, or null

  Causal causal;
  int64_t window_left, window_right;  // -1: open
  float scale, softcap, dropout_p;    // softcap 0: none
  bool decode;                        // forward alone: few query rows, nothing is packed
  bool short_keys;                    // all keys of a head fit a block of a GPU
  bool hopper;                        // forward alone, cuda: by wgmma
};

struct AttentionForward {
  AttentionCall c;
  void* output;                     // [B, H, L_q, D_v] or [total_q, H, D_v], contiguous; cpu: strided
  double* lse;                      // [B, H, L_q] or [H, total_q]; cpu: or null, not wanted
  AttentionStrides output_strides;  // cpu alone
};

struct AttentionBackward {
  AttentionCall c;
  const void* grad_output;  // as output, d with stride 1
  AttentionStrides grad_output_strides;
  const double* grad_lse;  // as lse, contiguous, or null: zero
  const void* output;      // what forward gave
  const double* lse;
  void *grad_q, *grad_k, *grad_v;  // contiguous
  float* grad_bias;                // shape of the bias, contiguous, zeroed; or null
  int64_t bias_sizes[4];           // of [B, H, L_q, L_k]: full, or 1 where it is broadcast
  float* grad_sink;                // [H], zeroed; or null
};

}  // namespace fastdl
