// What a block knows of its head of one sequence: rows, which keys a query sees, and the other way round.
// Every thread holds the same. Saves nothing.
#pragma once
#include "ops/attention/attention_span.h"
#include "ops/attention/attention_tile.cuh"

namespace fastdl::cuda {

// More rows than any call has (attention_cuda.h), and less than half of what an int counts.
constexpr int kOpen = 1 << 29;

// first .. end; the first is a multiple of the tile.
struct TileRange {
  int first, end;
};

struct Head {
  const AttentionCall& c;
  AttentionSpan span;
  int64_t h;
  int L_q, L_k;
  int shift;        // query i is aligned with key i + shift
  int left, right;  // how far before and after it a query sees

  FD_DEVICE Head(const AttentionCall& call, int64_t b, int64_t head)
      : c(call), span(attention_span(call, b)), h(head) {
    L_q = static_cast<int>(span.L_q), L_k = static_cast<int>(span.L_k);
    shift = c.causal == Causal::kTopLeft ? 0 : L_k - L_q;
    left = side(c.window_left), right = c.causal == Causal::kNone ? side(c.window_right) : 0;
  }
  static FD_DEVICE int side(int64_t window) {
    return static_cast<int>(window < 0 || window > kOpen ? kOpen : window);
  }
  // Of the head over all sequences: dropout's counter.
  FD_DEVICE uint32_t number() const { return static_cast<uint32_t>(span.number * c.H + h); }
  FD_DEVICE int64_t h_kv() const { return h / (c.H / c.H_kv); }

  template <class T>
  FD_DEVICE Rows<T> q() const {
    return rows_of<T>(c.q, c.q_strides, span.b, h, span.q_first, L_q, c.D);
  }
  template <class T>
  FD_DEVICE Rows<T> k() const {
    return rows_of<T>(c.k, c.k_strides, span.b, h_kv(), span.k_first, L_k, c.D);
  }
  template <class T>
  FD_DEVICE Rows<T> v() const {
    return rows_of<T>(c.v, c.v_strides, span.b, h_kv(), span.k_first, L_k, c.D_v);
  }

  // The keys that queries i .. i + count see, in tiles of kTile.
  template <int kTile>
  FD_DEVICE TileRange keys(int i, int count) const {
    const int last = min(i + count, L_q) - 1 + shift;
    return {min(max(i + shift - left, 0), L_k) / kTile * kTile, min(max(last + right + 1, 0), L_k)};
  }
  // The queries that see keys j .. j + count, in tiles of kTile.
  template <int kTile>
  FD_DEVICE TileRange queries(int j, int count) const {
    const int last = min(j + count, L_k) - 1 - shift;
    return {min(max(j - shift - right, 0), L_q) / kTile * kTile, min(max(last + left + 1, 0), L_q)};
  }
  FD_DEVICE bool sees(int i, int j) const {
    const int distance = i + shift - j;
    return distance <= left && distance >= -right && j < L_k;
  }
  // Whether all of queries i .. i + m see all of keys j .. j + n.
  FD_DEVICE bool sees_all(int i, int m, int j, int n) const {
    return i + m - 1 + shift - j <= left && i + shift - (j + n - 1) >= -right && j + n <= L_k;
  }
};

}  // namespace fastdl::cuda
