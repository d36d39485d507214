// Runs the CUDA kernels of attention, forward and backward, on random calls in every dtype against plain
// loops in fp64. Arguments: --schedule N, --large 1, --dtype fp32|fp16|bf16. Exit status 1 if a case fails.
#include "emulation/ops/attention.cpp"

#include <cmath>
#include <vector>

#include "checked_memory.h"

namespace {

struct Case {
  int64_t B, H, H_kv, L_q, L_k, D, D_v;
  Causal causal;
  int64_t left, right;
  float softcap, dropout_p;
  bool mask, bias, alibi, sink;
  unsigned shared_bytes;
  bool decode = false, short_keys = false, hopper = false;  // forward alone
};
constexpr Causal kNone = Causal::kNone, kTop = Causal::kTopLeft, kBottom = Causal::kBottomRight;
constexpr unsigned kMany = emu::kMaxSharedBytes, kFew = 64 << 10, kFewest = 40 << 10;
// Whole chunks and single elements; several tiles of keys; rows that see nothing; one stage and two.
const Case kSmall[] = {
    {1, 2, 1, 19, 70, 16, 24, kBottom, -1, -1, 0, 0.3f, false, false, true, true, kMany},
    {2, 1, 1, 20, 37, 9, 7, kNone, 5, 9, 1.5f, 0, true, true, false, false, kFewest},
    {1, 1, 1, 36, 40, 100, 72, kNone, -1, -1, 0, 0.2f, false, false, false, false, kFew},
    {1, 4, 2, 3, 530, 16, 20, kBottom, -1, -1, 1.5f, 0.3f, false, true, true, true, kMany, true},
    {2, 6, 1, 3, 300, 9, 7, kNone, 200, 9, 0, 0, true, false, false, false, kFewest, true},
    {4, 4, 2, 70, 66, 16, 24, kBottom, -1, -1, 1.5f, 0.3f, true, true, true, true, kMany, false, true},
    {1, 2, 1, 70, 260, 72, 104, kBottom, -1, -1, 0, 0, false, false, false, true, kMany, false, false, true},
};
const Case kLarge[] = {
    {1, 2, 2, 150, 140, 64, 64, kTop, -1, -1, 0, 0.2f, false, true, false, true, kMany},
    {1, 1, 1, 40, 70, 100, 128, kBottom, -1, -1, 0, 0, true, false, false, false, kFew},
    {1, 1, 1, 20, 40, 200, 160, kNone, -1, -1, 2.0f, 0, false, true, true, true, kMany},
    {1, 2, 2, 1, 1100, 200, 160, kNone, -1, -1, 0, 0, false, false, false, true, kMany, true},
    {1, 2, 1, 5, 600, 100, 128, kTop, -1, -1, 0, 0.2f, true, false, true, false, kFew, true},
    {1, 2, 1, 70, 100, 100, 128, kBottom, -1, -1, 0, 0.2f, true, false, true, true, kMany, false, true},
    {2, 2, 2, 150, 700, 64, 24, kTop, -1, -1, 1.5f, 0, true, true, true, false, kMany, false, false, true},
    {1, 1, 1, 260, 390, 128, 128, kNone, 80, 9, 0, 0, false, false, false, false, kMany, false, false, true},
};

int failures = 0;

struct Results {
  std::vector<double> output, lse, grad_q, grad_k, grad_v, grad_bias, grad_sink;
};

// A call's tensors in fp64, dense and contiguous; mask [B, 1, L_q, L_k], bias [1, H, L_q, L_k].
struct Inputs {
  std::vector<double> q, k, v, bias, grad_output, grad_lse;
  std::vector<uint8_t> mask;
  std::vector<float> slopes, sink;
  int64_t seed = 3 - (int64_t{1} << 50);
};

bool kept(const Case& c, const Inputs& in, int64_t head, int64_t i, int64_t j) {
  const PhiloxWords words =
      philox({{static_cast<uint32_t>(j / 4), static_cast<uint32_t>(i), static_cast<uint32_t>(head), 0}},
             static_cast<uint64_t>(in.seed));
  return words.word[j % 4] >= dropout_threshold(c.dropout_p);
}

bool seen(const Case& c, const Inputs& in, int64_t b, int64_t i, int64_t j) {
  const int64_t distance = i + (c.causal == kTop ? 0 : c.L_k - c.L_q) - j;
  const int64_t right = c.causal == kNone ? c.right : 0;
  return (c.left < 0 || distance <= c.left) && (right < 0 || distance >= -right) &&
         (!c.mask || in.mask[(b * c.L_q + i) * c.L_k + j]);
}

// One query: its scores' powers, then its part of every result.
void truth_of_row(const Case& c, const Inputs& in, int64_t b, int64_t h, int64_t i, Results& r) {
  const int64_t head = b * c.H + h, row = head * c.L_q + i, kv = b * c.H_kv + h / (c.H / c.H_kv);
  const double scale = 0.3, factor = 1 / (1 - double{c.dropout_p});
  std::vector<double> s(c.L_k, -INFINITY), slant(c.L_k, 0);
  double most = c.sink ? in.sink[h] : -INFINITY;
  for (int64_t j = 0; j < c.L_k; ++j) {
    if (!seen(c, in, b, i, j)) continue;
    double dot = 0;
    for (int64_t d = 0; d < c.D; ++d) dot += in.q[row * c.D + d] * in.k[(kv * c.L_k + j) * c.D + d];
    s[j] = dot * scale;
    if (c.softcap != 0) slant[j] = std::tanh(s[j] / c.softcap), s[j] = c.softcap * slant[j];
    if (c.bias) s[j] += in.bias[(h * c.L_q + i) * c.L_k + j];
    if (c.alibi) s[j] -= in.slopes[h] * std::fabs(double(i + (c.causal == kTop ? 0 : c.L_k - c.L_q) - j));
    most = std::fmax(most, s[j]);
  }
  double total = c.sink ? std::exp(in.sink[h] - most) : 0;
  for (double value : s) total += value == -INFINITY ? 0 : std::exp(value - most);
  r.lse[row] = total == 0 ? -INFINITY : most + std::log(total);
  if (total == 0) return;
  std::vector<double> p(c.L_k), grad_p(c.L_k, 0);
  for (int64_t j = 0; j < c.L_k; ++j) {
    p[j] = s[j] == -INFINITY ? 0 : std::exp(s[j] - r.lse[row]);
    const double keep = c.dropout_p == 0 || kept(c, in, head, i, j) ? factor : 0;
    for (int64_t d = 0; d < c.D_v; ++d) {
      const int64_t value = (kv * c.L_k + j) * c.D_v + d;
      const double grad = in.grad_output[row * c.D_v + d];
      r.output[row * c.D_v + d] += p[j] * keep * in.v[value];
      r.grad_v[value] += p[j] * keep * grad;
      grad_p[j] += keep * grad * in.v[value];
    }
  }
  double delta = -in.grad_lse[row];
  for (int64_t j = 0; j < c.L_k; ++j) delta += p[j] * grad_p[j];
  if (c.sink) r.grad_sink[h] -= std::exp(in.sink[h] - r.lse[row]) * delta;
  for (int64_t j = 0; j < c.L_k; ++j) {
    const double grad_s = p[j] * (grad_p[j] - delta);
    if (c.bias) r.grad_bias[(h * c.L_q + i) * c.L_k + j] += grad_s;
    const double scaled = grad_s * (1 - slant[j] * slant[j]) * scale;
    for (int64_t d = 0; d < c.D; ++d) {
      r.grad_q[row * c.D + d] += scaled * in.k[(kv * c.L_k + j) * c.D + d];
      r.grad_k[(kv * c.L_k + j) * c.D + d] += scaled * in.q[row * c.D + d];
    }
  }
}

// Random values that T holds, and the same in fp64.
template <class T>
std::vector<double> draw(Array<T>& array) {
  array.random();
  std::vector<double> values(array.size);
  for (size_t i = 0; i < array.size; ++i) values[i] = double(array[i]);
  return values;
}

template <class T>
void compare(const char* what, const Case& c, Array<T>& got, const std::vector<double>& truth,
             double tolerance) {
  double size = 1;
  for (double t : truth)
    if (std::isfinite(t)) size = std::fmax(size, std::fabs(t));
  for (size_t i = 0; i < truth.size(); ++i) {
    const double value = double(got[i]);
    if (value == truth[i] || std::fabs(value - truth[i]) <= tolerance * size) continue;
    printf("FAIL %s %s [%zu] = %g, expected %g; L %lldx%lld D %lld\n", value != value ? "poison" : "wrong",
           what, i, value, truth[i], static_cast<long long>(c.L_q), static_cast<long long>(c.L_k),
           static_cast<long long>(c.D));
    ++failures;
    return;
  }
}

template <class T>
void run(const Case& c, DType dtype, double tolerance) {
  generator.seed(1);
  emulation_set_largest_shared(c.shared_bytes);
  emulation_set_multiprocessors(8);
  const int64_t rows = c.B * c.H * c.L_q, keys = c.B * c.H_kv * c.L_k, pairs = c.H * c.L_q * c.L_k;
  Array<T> q(rows * c.D), k(keys * c.D), v(keys * c.D_v), bias(pairs), grad_output(rows * c.D_v);
  Array<T> output(rows * c.D_v), grad_q(rows * c.D), grad_k(keys * c.D), grad_v(keys * c.D_v);
  Array<double> lse(rows), grad_lse(rows);
  Array<uint8_t> mask(c.B * c.L_q * c.L_k);
  Array<float> slopes(c.H), sink(c.H), grad_bias(pairs), grad_sink(c.H);
  Inputs in;
  in.q = draw(q), in.k = draw(k), in.v = draw(v), in.bias = draw(bias), in.grad_output = draw(grad_output);
  in.grad_lse = draw(grad_lse);
  slopes.random(0.1f), sink.random();
  in.slopes.assign(slopes.data, slopes.data + c.H), in.sink.assign(sink.data, sink.data + c.H);
  for (size_t i = 0; i < mask.size; ++i) mask[i] = generator() % 4 != 0;
  in.mask.assign(mask.data, mask.data + mask.size);

  AttentionCall call{};
  call.B = c.B, call.H = c.H, call.H_kv = c.H_kv, call.L_q = call.max_q = c.L_q,
  call.L_k = call.max_k = c.L_k;
  call.D = c.D, call.D_v = c.D_v, call.dtype = dtype, call.causal = c.causal;
  call.q = q.data, call.k = k.data, call.v = v.data;
  const auto strides = [](int64_t H, int64_t L, int64_t D) {
    return AttentionStrides{H * L * D, L * D, D, 1};
  };
  call.q_strides = strides(c.H, c.L_q, c.D), call.k_strides = strides(c.H_kv, c.L_k, c.D);
  call.v_strides = strides(c.H_kv, c.L_k, c.D_v);
  if (c.mask) call.mask = mask.data, call.mask_strides = {c.L_q * c.L_k, 0, c.L_k, 1};
  if (c.bias) call.bias = bias.data, call.bias_strides = {0, c.L_q * c.L_k, c.L_k, 1};
  if (c.alibi) call.alibi_slopes = slopes.data;
  if (c.sink) call.sink = sink.data;
  call.seed = &in.seed, call.window_left = c.left, call.window_right = c.right;
  call.scale = 0.3f, call.softcap = c.softcap, call.dropout_p = c.dropout_p;
  call.decode = c.decode, call.short_keys = c.short_keys, call.hopper = c.hopper;

  const AttentionForward forward{call, output.data, lse.data};
  Array<char> partials(static_cast<size_t>(emulated_attention_forward_workspace(&call)));
  int status = emulated_attention_forward(&forward, partials.data);
  AttentionBackward backward{call,          grad_output.data, strides(c.H, c.L_q, c.D_v),
                             grad_lse.data, output.data,      lse.data,
                             grad_q.data,   grad_k.data,      grad_v.data};
  if (c.bias) backward.grad_bias = grad_bias.data, backward.bias_sizes[0] = 1, backward.bias_sizes[1] = c.H;
  if (c.bias) backward.bias_sizes[2] = c.L_q, backward.bias_sizes[3] = c.L_k;
  if (c.sink) backward.grad_sink = grad_sink.data;
  Array<char> workspace(static_cast<size_t>(emulated_attention_backward_workspace(&call)));
  const bool forward_alone = c.decode || (c.short_keys && (c.D > 64 || c.D_v > 64)) || c.hopper;
  if (!status && !forward_alone) status = emulated_attention_backward(&backward, workspace.data);
  const char* error = emulation_take_error();
  if (error || status) {
    printf("FAIL emulator %s, status %d\n", error ? error : "", status);
    ++failures;
    return;
  }
  const auto zeros = [](size_t count) { return std::vector<double>(count, 0); };
  Results r{zeros(output.size), zeros(rows),      zeros(grad_q.size), zeros(grad_k.size),
            zeros(grad_v.size), zeros(bias.size), zeros(c.H)};
  for (int64_t row = 0; row < rows; ++row)
    truth_of_row(c, in, row / c.L_q / c.H, row / c.L_q % c.H, row % c.L_q, r);
  compare("output", c, output, r.output, tolerance), compare("lse", c, lse, r.lse, tolerance);
  if (forward_alone) return;
  compare("grad_q", c, grad_q, r.grad_q, tolerance), compare("grad_k", c, grad_k, r.grad_k, tolerance);
  compare("grad_v", c, grad_v, r.grad_v, tolerance);
  if (c.bias) compare("grad_bias", c, grad_bias, r.grad_bias, tolerance);
  if (c.sink) compare("grad_sink", c, grad_sink, r.grad_sink, tolerance);
}

}  // namespace

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  bool large = false;
  const char* dtype = nullptr;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!strcmp(argv[i], "--schedule")) emu::options.schedule = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--large")) large = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--dtype")) dtype = argv[i + 1];
  }
  auto wanted = [&](const char* name) { return !dtype || !strcmp(dtype, name); };
  auto each = [&](const Case& c) {
    const bool unserved = c.hopper || (c.short_keys && (c.D > 64 || c.D_v > 64));
    if (wanted("fp32") && !unserved) run<float>(c, DType::kFloat32, 1e-5);
    if (wanted("fp16")) run<__half>(c, DType::kFloat16, 4e-3);
    if (wanted("bf16")) run<__nv_bfloat16>(c, DType::kBFloat16, 3e-2);
  };
  for (const Case& c : kSmall) each(c);
  if (large)
    for (const Case& c : kLarge) each(c);
  if (!failures) puts("ok");
  return failures != 0;
}
