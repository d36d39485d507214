// Both sublayers as calls of linear's and attention's kernels: one operator, and no intermediate result
// larger than a chunk of rows.
#include "ops/sublayer/sublayer_cpu.h"

#include <algorithm>

#include "common/cpu/scratch.h"
#include "ops/attention/attention_cpu.h"
#include "ops/linear/linear_cpu.h"

namespace fastdl::cpu {
namespace {

// Numbers of intermediate results of a chunk: 4 MB stay in a shared cache.
constexpr int64_t kChunk = 1 << 20;
// Rows of a chunk at least: packing a weight takes as long as multiplying it with 4.
constexpr int64_t kFewestRows = 256;
// Rows up to which the plain weight is multiplied as fast as a packed one: if it is long, short, or short and
// narrow.
constexpr int64_t kPlainRows = 48, kPlainRowsOfShort = 31, kPlainRowsOfNarrow = 128;

bool multiply_plain(int64_t rows, const Projection& p) {
  if (p.K > 256) return rows <= kPlainRows;
  return rows <= (p.K >= 64 && p.K >= 2 * p.N ? kPlainRowsOfNarrow : kPlainRowsOfShort);
}

// Products of two numbers each up to which one thread is faster: to share each loop costs an operator 5 us.
constexpr int64_t kAlone = 1 << 18;

const ThreadPool& pool_for(int64_t rows, const Projection& first, const Projection& second,
                           const ThreadPool& pool) {
  return rows * (first.N * first.K + second.N * second.K) <= kAlone ? kSerial : pool;
}

// output[rows, N] = activation(x[rows, K] weight^T + bias)
void project(int64_t rows, const float* x, const Projection& p, Activation activation, float* output,
             const ThreadPool& pool) {
  if (rows == 0) return;
  if (multiply_plain(rows, p)) {
    LinearForward args{rows, p.N, p.K, DType::kFloat32, activation, {false, 0, 1, 1, 0}};
    args.x = x, args.weight = p.weight, args.bias = p.bias, args.output = output, args.pre = nullptr;
    return linear_dot_forward(args, pool);
  }
  LinearProduct args{rows, p.N, p.K, x, p.weight, p.bias, output, p.K, 1, 1, p.K};
  linear_product(args, pool);
  if (activation == Activation::kNone) return;
  linear_activation_forward({rows * p.N, DType::kFloat32, activation, {false, 0, 1, 1, 0}, output, output},
                            pool);
}

Projection rows_of(const Projection& p, int64_t first, int64_t count) {
  return {count, p.K, p.weight + first * p.K, p.bias == nullptr ? nullptr : p.bias + first};
}

// What f is given: x, or norm(x) in `to`.
const float* before(const Norm& norm, int64_t rows, int64_t E, const float* x, float* to,
                    const ThreadPool& pool) {
  if (norm.around != Around::kPreNorm) return x;
  residual_norm({rows, E, x, nullptr, norm.weight, norm.bias, norm.eps, to}, pool);
  return to;
}

// output holds f.
void after(const Norm& norm, int64_t rows, int64_t E, const float* x, float* output, const ThreadPool& pool) {
  if (norm.around == Around::kNothing) return;
  const float* weight = norm.around == Around::kPostNorm ? norm.weight : nullptr;
  residual_norm({rows, E, output, x, weight, norm.bias, norm.eps, output}, pool);
}

// Heads side by side in rows of `width` numbers.
AttentionStrides heads_of(const AttentionSublayer& a, int64_t B, int64_t L, int64_t width) {
  const int64_t D = a.E / a.H;
  return a.batch_first ? AttentionStrides{L * width, D, width, 1} : AttentionStrides{width, D, B * width, 1};
}

// Keys and values of the new tokens, in rows of `width` numbers -> their places in the cache.
void put(const AttentionSublayer& a, const float* rows, int64_t width) {
  const int64_t D = a.E / a.H, length = a.cache.length;
  for (int64_t b = 0; b < a.B; ++b)
    for (int64_t l = 0; l < a.L; ++l)
      for (int64_t h = 0; h < a.H; ++h) {
        const float* from = rows + (b * a.L + l) * width + h * D;
        const int64_t to = ((b * a.H + h) * length + a.cache.past + l) * D;
        std::copy(from, from + D, a.cache.keys + to);
        std::copy(from + a.E, from + a.E + D, a.cache.values + to);
      }
}

// Sequences first .. first + count; all of them unless batch_first, where there is a cache or rows are
// packed.
void attend(const AttentionSublayer& a, int64_t first, int64_t count, float* memory, const ThreadPool& pool) {
  const bool packed = a.call.cu_seqlens_q != nullptr;
  const int64_t E = a.E, rows = packed ? a.L : count * a.L, keys = count * a.S, at = first * a.L * E;
  float *q = memory, *normed = q + (a.memory == nullptr ? rows * 3 * E : rows * E + keys * 2 * E);
  const float* x = before(a.norm, rows, E, a.x + at, normed, pool);
  AttentionCall c = a.call;
  c.B = count, c.H = c.H_kv = a.H, c.L_q = a.L, c.L_k = a.S, c.D = c.D_v = E / a.H;
  if (!packed) c.max_q = a.L, c.max_k = a.S;
  c.dtype = DType::kFloat32;
  if (c.mask != nullptr) c.mask += first * c.mask_strides.b;
  if (c.bias != nullptr) c.bias = static_cast<const float*>(c.bias) + first * c.bias_strides.b;
  if (a.cache.keys != nullptr) {
    const bool append = a.cache.past >= 0;
    project(rows, x, append ? a.in : rows_of(a.in, 0, E), Activation::kNone, q, pool);
    if (append) put(a, q + E, 3 * E);
    const int64_t D = E / a.H, head = a.cache.length * D;
    c.q = q, c.k = a.cache.keys, c.v = a.cache.values;
    c.q_strides = heads_of(a, count, a.L, append ? 3 * E : E);
    c.k_strides = c.v_strides = {a.H * head, head, D, 1};
  } else if (a.memory == nullptr) {
    project(rows, x, a.in, Activation::kNone, q, pool);
    c.q = q, c.k = q + E, c.v = q + 2 * E;
    c.q_strides = c.k_strides = c.v_strides = heads_of(a, count, a.L, 3 * E);
    if (packed) c.q_strides.b = c.k_strides.b = c.v_strides.b = 0;
  } else {
    float* kv = q + rows * E;
    project(rows, x, rows_of(a.in, 0, E), Activation::kNone, q, pool);
    project(keys, a.memory + first * a.S * E, rows_of(a.in, E, 2 * E), Activation::kNone, kv, pool);
    c.q = q, c.k = kv, c.v = kv + E;
    c.q_strides = heads_of(a, count, a.L, E), c.k_strides = c.v_strides = heads_of(a, count, a.S, 2 * E);
  }
  // its rows are no longer needed where x was normed
  AttentionForward forward{c, normed, nullptr, heads_of(a, count, a.L, E)};
  if (packed) forward.output_strides.b = 0;
  if (a.weights == nullptr)
    attention_forward(forward, pool);
  else
    attention_weights({forward, a.weights + first * (a.averaged ? 1 : a.H) * a.L * a.S, a.averaged}, pool);
  project(rows, normed, a.out, Activation::kNone, a.output + at, pool);
  after(a.norm, rows, E, a.x + at, a.output + at, pool);
}

// Chunks of `count` things that are as even as can be, each of `each` numbers and at least `fewest`.
int64_t chunk_of(int64_t count, int64_t each, int64_t fewest) {
  const int64_t most = std::max(fewest, kChunk / each), chunks = (count + most - 1) / most;
  return (count + chunks - 1) / chunks;
}

}  // namespace

void attention_sublayer(const AttentionSublayer& a, const ThreadPool& threads) {
  if (a.B == 0 || a.L == 0) return;
  const int64_t each = (a.memory == nullptr ? 4 * a.L : 2 * a.L + 2 * a.S) * a.E;
  const bool packed = a.call.cu_seqlens_q != nullptr;
  const bool chunked = a.batch_first && a.cache.keys == nullptr && !packed;
  const int64_t count = chunked ? chunk_of(a.B, each, (kFewestRows + a.L - 1) / a.L) : a.B;
  const int64_t together = packed ? 1 : count;
  const int64_t tokens = packed ? a.L : a.B * std::max(a.L, a.S);
  const ThreadPool& pool = pool_for(tokens, a.in, a.out, threads);
  const OperatorScratch scratch(static_cast<size_t>(together * each) * sizeof(float));
  for (int64_t first = 0; first < a.B; first += count)
    attend(a, first, std::min(count, a.B - first), scratch.floats(), pool);
}

void feed_forward_sublayer(const FeedForwardSublayer& a, const ThreadPool& threads) {
  if (a.rows == 0) return;
  const ThreadPool& pool = pool_for(a.rows, a.in, a.out, threads);
  const int64_t E = a.in.K, hidden = a.in.N, count = chunk_of(a.rows, hidden + E, kFewestRows);
  const OperatorScratch scratch(static_cast<size_t>(count * (hidden + E)) * sizeof(float));
  float* memory = scratch.floats();
  for (int64_t first = 0; first < a.rows; first += count) {
    const int64_t rows = std::min(count, a.rows - first), at = first * E;
    const float* x = before(a.norm, rows, E, a.x + at, memory + count * hidden, pool);
    project(rows, x, a.in, a.activation, memory, pool);
    project(rows, memory, a.out, Activation::kNone, a.output + at, pool);
    after(a.norm, rows, E, a.x + at, a.output + at, pool);
  }
}

}  // namespace fastdl::cpu
