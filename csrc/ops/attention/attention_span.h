// Where the rows of one sequence lie in every tensor, and which keys a query may see.
#pragma once
#include <cstdint>

#include "common/host_device.h"
#include "ops/attention/attention.h"

namespace fastdl {

// Sequence b: rows q_first .. q_first + L_q of q (dense: 0), and of k.
struct AttentionSpan {
  int64_t b;  // for strides: packed 0
  int64_t number;
  int64_t q_first, L_q, k_first, L_k;
};

FASTDL_HOST_DEVICE inline int64_t clamp_to(int64_t value, int64_t most) {
  return value < 0 ? 0 : value > most ? most : value;
}

FASTDL_HOST_DEVICE inline int64_t sequence_start(const AttentionCall& c, const void* cu_seqlens, int64_t i,
                                                 int64_t most) {
  const int64_t start = c.cu_seqlens_64 ? static_cast<const int64_t*>(cu_seqlens)[i]
                                        : static_cast<const int32_t*>(cu_seqlens)[i];
  return clamp_to(start, most);
}

FASTDL_HOST_DEVICE inline AttentionSpan attention_span(const AttentionCall& c, int64_t b) {
  if (c.cu_seqlens_q == nullptr) return {b, b, 0, c.L_q, 0, c.L_k};
  const int64_t q = sequence_start(c, c.cu_seqlens_q, b, c.L_q),
                k = sequence_start(c, c.cu_seqlens_k, b, c.L_k);
  const int64_t q_end = sequence_start(c, c.cu_seqlens_q, b + 1, c.L_q);
  const int64_t k_end = sequence_start(c, c.cu_seqlens_k, b + 1, c.L_k);
  return {0, b, q, q_end > q ? q_end - q : 0, k, k_end > k ? k_end - k : 0};
}

// Row i of head h, of `heads` heads with L rows each (packed: in all), in output and in gradients of q, k and
// v; `first`: q_first or k_first.
FASTDL_HOST_DEVICE inline int64_t tensor_row(const AttentionCall& c, const AttentionSpan& span, int64_t heads,
                                             int64_t L, int64_t first, int64_t h, int64_t i) {
  return c.cu_seqlens_q != nullptr ? (first + i) * heads + h : (span.number * heads + h) * L + i;
}

FASTDL_HOST_DEVICE inline int64_t query_row(const AttentionCall& c, const AttentionSpan& span, int64_t h,
                                            int64_t i) {
  return tensor_row(c, span, c.H, c.L_q, span.q_first, h, i);
}

FASTDL_HOST_DEVICE inline int64_t key_row(const AttentionCall& c, const AttentionSpan& span, int64_t h,
                                          int64_t i) {
  return tensor_row(c, span, c.H_kv, c.L_k, span.k_first, h, i);
}

// The element of lse, [B, H, L_q] or [H, total_q].
FASTDL_HOST_DEVICE inline int64_t lse_index(const AttentionCall& c, const AttentionSpan& span, int64_t h,
                                            int64_t i) {
  return ((c.cu_seqlens_q != nullptr ? 0 : span.number * c.H) + h) * c.L_q + span.q_first + i;
}

// The keys first .. end that causality and the window let query i of a sequence see.
struct KeyRange {
  int64_t first, end;
};

FASTDL_HOST_DEVICE inline KeyRange visible_keys(const AttentionCall& c, const AttentionSpan& span,
                                                int64_t i) {
  const int64_t aligned = i + (c.causal == Causal::kTopLeft ? 0 : span.L_k - span.L_q);
  const int64_t right = c.causal == Causal::kNone ? c.window_right : 0;
  const int64_t first = c.window_left < 0 ? 0 : clamp_to(aligned - c.window_left, span.L_k);
  const int64_t end = right < 0 ? span.L_k : clamp_to(aligned + right + 1, span.L_k);
  return {first, end > first ? end : first};
}

}  // namespace fastdl
