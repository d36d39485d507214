// Attention in bf16, and in fp32, in three parts where tiles have registers, emulated or not, both ways,
// against loops in double: odd sizes, grouped heads, masks, biases, causality. Tensors end at an unreadable
// page; 1, 2 and 5 threads are bitwise equal. Exits 1 on failure.
#define FASTDL_EMULATE_TILES
#include "ops/attention/attention_cpu.cpp"
// after it: the kernels' headers come first, as in their own build
#include "kernel_test.h"

using namespace fastdl;
using namespace fastdl::test;

namespace {

int failures = 0;

struct Case {
  int64_t B, H, H_kv, L_q, L_k, D, D_v;
  bool mask, bias, bias_shared, grad_lse;
  Causal causal;
  float softcap;
};

typedef std::vector<double> Numbers;

// [B, H, L, D], contiguous.
template <class T>
struct Rows {
  int64_t H, L, D;
  Guarded<T> data;

  Rows(int64_t B, int64_t heads, int64_t length, int64_t size, Random& random)
      : H(heads), L(length), D(size), data(B * heads * length * size) {
    for (int64_t i = 0; i < data.size(); ++i) assign(&data[i], 2 * random.uniform());
  }
  AttentionStrides strides() const { return {H * L * D, L * D, D, 1}; }
  double at(int64_t b, int64_t h, int64_t l, int64_t d) const {
    return value(data[((b * H + h) * L + l) * D + d]);
  }
};

template <class T>
struct Inputs {
  Rows<T> q, k, v, grad_output;
  Guarded<uint8_t> mask;
  Guarded<T> bias;
  Guarded<double> grad_lse;
  AttentionCall call = {};

  Inputs(const Case& c, Random& random)
      : q(c.B, c.H, c.L_q, c.D, random),
        k(c.B, c.H_kv, c.L_k, c.D, random),
        v(c.B, c.H_kv, c.L_k, c.D_v, random),
        grad_output(c.B, c.H, c.L_q, c.D_v, random),
        mask(c.L_q * c.L_k),
        bias((c.bias_shared ? 1 : c.B * c.H) * c.L_q * c.L_k),
        grad_lse(c.B * c.H * c.L_q) {
    for (int64_t i = 0; i < mask.size(); ++i) mask[i] = random.below(4) != 0;
    for (int64_t i = 0; i < bias.size(); ++i) assign(&bias[i], random.uniform());
    for (int64_t i = 0; i < grad_lse.size(); ++i) grad_lse[i] = random.uniform();
    call.B = c.B, call.H = c.H, call.H_kv = c.H_kv, call.L_q = call.max_q = c.L_q;
    call.L_k = call.max_k = c.L_k, call.D = c.D, call.D_v = c.D_v,
    call.dtype = std::is_same<T, float>::value ? DType::kFloat32 : DType::kBFloat16;
    call.q = q.data.data(), call.k = k.data.data(), call.v = v.data.data();
    call.q_strides = q.strides(), call.k_strides = k.strides(), call.v_strides = v.strides();
    const int64_t square = c.L_q * c.L_k;
    if (c.mask) call.mask = mask.data(), call.mask_strides = {0, 0, c.L_k, 1};
    if (c.bias) call.bias = bias.data(), call.bias_strides = {c.H * square, square, c.L_k, 1};
    if (c.bias && c.bias_shared) call.bias_strides.b = call.bias_strides.h = 0;
    call.causal = c.causal, call.window_left = call.window_right = -1;
    call.scale = 1 / std::sqrt(static_cast<float>(c.D)), call.softcap = c.softcap;
  }
};

template <class T>
struct Results {
  Guarded<T> output, grad_q, grad_k, grad_v;
  Guarded<double> lse;
  Guarded<float> grad_bias;

  explicit Results(const Inputs<T>& in)
      : output(in.grad_output.data.size()),
        grad_q(in.q.data.size()),
        grad_k(in.k.data.size()),
        grad_v(in.v.data.size()),
        lse(in.grad_lse.size()),
        grad_bias(in.bias.size()) {
    for (int64_t i = 0; i < grad_bias.size(); ++i) grad_bias[i] = 0;
  }
  bool same_bytes(const Results& r) const {
    return output.same_bytes(r.output) && grad_q.same_bytes(r.grad_q) && grad_k.same_bytes(r.grad_k) &&
           grad_v.same_bytes(r.grad_v) && lse.same_bytes(r.lse) && grad_bias.same_bytes(r.grad_bias);
  }
};

template <class T>
void run(const Case& c, const Inputs<T>& in, Results<T>& r) {
  AttentionForward forward = {in.call, r.output.data(), r.lse.data(), fastdl::cpu::dense_output(in.call)};
  cpu::attention_forward(forward, kThreadPool);
  AttentionBackward backward = {};
  backward.c = in.call;
  backward.grad_output = in.grad_output.data.data(), backward.output = r.output.data();
  backward.grad_output_strides = in.grad_output.strides();
  backward.grad_lse = c.grad_lse ? in.grad_lse.data() : nullptr, backward.lse = r.lse.data();
  backward.grad_q = r.grad_q.data(), backward.grad_k = r.grad_k.data(), backward.grad_v = r.grad_v.data();
  if (c.bias) backward.grad_bias = r.grad_bias.data();
  const int64_t sizes[4] = {c.bias_shared ? 1 : c.B, c.bias_shared ? 1 : c.H, c.L_q, c.L_k};
  std::memcpy(backward.bias_sizes, sizes, sizeof(sizes));
  cpu::attention_backward(backward, kThreadPool);
}

// A value and what its error is measured by: bf16 rounds operands and result by 2^-9 of these, fp32 each sum
// by 2^-24.
struct Expected {
  Numbers value, magnitude;
  explicit Expected(int64_t n) : value(static_cast<size_t>(n)), magnitude(static_cast<size_t>(n)) {}
  void add(int64_t i, double term, double size) {
    value[static_cast<size_t>(i)] += term, magnitude[static_cast<size_t>(i)] += size;
  }
};

template <class T>
void compare(const char* name, const Case& c, const Expected& e, const Guarded<T>& got, double unit) {
  for (int64_t i = 0; i < got.size(); ++i) {
    const double x = value(got[i]), y = e.value[static_cast<size_t>(i)];
    const double most = unit * (e.magnitude[static_cast<size_t>(i)] + std::fabs(y)) + unit / 4096;
    if (!(x == y || std::fabs(x - y) <= most) && ++failures <= 20)
      std::printf(
          "B %ld H %ld/%ld L %ld x %ld D %ld, %ld causal %d mask %d bias %d: %s[%ld] is %.6g, expected "
          "%.6g\n",
          c.B, c.H, c.H_kv, c.L_q, c.L_k, c.D, c.D_v, static_cast<int>(c.causal), c.mask, c.bias, name, i, x,
          y);
  }
}

template <class T>
bool is_seen(const Case& c, const Inputs<T>& in, int64_t i, int64_t j) {
  if (c.mask && in.mask[i * c.L_k + j] == 0) return false;
  if (c.causal == Causal::kNone) return true;
  return j <= i + (c.causal == Causal::kTopLeft ? 0 : c.L_k - c.L_q);
}

template <class T>
void check(const Case& c, const Inputs<T>& in, const Results<T>& r) {
  const double unit = std::is_same<T, float>::value ? 0x1p-19 : 0x1p-8;
  Expected output(r.output.size()), lse(r.lse.size()), grad_q(r.grad_q.size()), grad_k(r.grad_k.size()),
      grad_v(r.grad_v.size()), grad_bias(r.grad_bias.size());
  const double scale = in.call.scale;
  Numbers s(static_cast<size_t>(c.L_k)), p(s.size()), slope(s.size());
  for (int64_t row = 0; row < c.B * c.H * c.L_q; ++row) {
    const int64_t i = row % c.L_q, h = row / c.L_q % c.H, b = row / c.L_q / c.H, kv = h / (c.H / c.H_kv);
    const int64_t first = c.bias_shared ? 0 : (b * c.H + h) * c.L_q * c.L_k;
    double highest = -HUGE_VAL, total = 0;
    for (int64_t j = 0; j < c.L_k; ++j) {
      double score = 0;
      for (int64_t d = 0; d < c.D; ++d) score += in.q.at(b, h, i, d) * in.k.at(b, kv, j, d);
      const double t = c.softcap ? std::tanh(score * scale / c.softcap) : 0;
      slope[j] = 1 - t * t;
      s[j] = c.softcap ? c.softcap * t : score * scale;
      if (c.bias) s[j] += value(in.bias[first + i * c.L_k + j]);
      if (!is_seen(c, in, i, j)) s[j] = -HUGE_VAL;
      highest = std::fmax(highest, s[j]);
    }
    if (highest == -HUGE_VAL) {
      lse.value[row] = -HUGE_VAL;
      continue;
    }
    for (int64_t j = 0; j < c.L_k; ++j) total += p[j] = std::exp(s[j] - highest);
    lse.add(row, highest + std::log(total), 1);
    double delta = 0, size = 0;
    for (int64_t d = 0; d < c.D_v; ++d) {
      const int64_t at = row * c.D_v + d;
      for (int64_t j = 0; j < c.L_k; ++j)
        output.add(at, p[j] / total * in.v.at(b, kv, j, d), p[j] / total * std::fabs(in.v.at(b, kv, j, d)));
      const double grad = value(in.grad_output.data[at]);
      delta += grad * output.value[at], size += std::fabs(grad * output.value[at]);
    }
    if (c.grad_lse) delta -= in.grad_lse[row];
    for (int64_t j = 0; j < c.L_k; ++j) {
      const double power = p[j] / total;
      double grad_p = 0;
      for (int64_t d = 0; d < c.D_v; ++d) {
        const double grad = value(in.grad_output.data[row * c.D_v + d]);
        grad_p += grad * in.v.at(b, kv, j, d);
        const int64_t at = ((b * c.H_kv + kv) * c.L_k + j) * c.D_v + d;
        grad_v.add(at, power * grad, power * std::fabs(grad));
      }
      const double grad_s = power * (grad_p - delta), most = std::fabs(grad_s) + power * size;
      if (c.bias) grad_bias.add(first + i * c.L_k + j, grad_s, most);
      for (int64_t d = 0; d < c.D; ++d) {
        const double k = in.k.at(b, kv, j, d), q = in.q.at(b, h, i, d),
                     factor = scale * (c.softcap ? slope[j] : 1);
        grad_q.add(row * c.D + d, factor * grad_s * k, factor * most * std::fabs(k));
        grad_k.add(((b * c.H_kv + kv) * c.L_k + j) * c.D + d, factor * grad_s * q,
                   factor * most * std::fabs(q));
      }
    }
  }
  compare("output", c, output, r.output, unit);
  compare("lse", c, lse, r.lse, 0x1p-19);
  compare("grad_q", c, grad_q, r.grad_q, unit);
  compare("grad_k", c, grad_k, r.grad_k, unit);
  compare("grad_v", c, grad_v, r.grad_v, unit);
  if (c.bias) compare("grad_bias", c, grad_bias, r.grad_bias, unit);
}

template <class T>
void check_case(const Case& c, Random& random) {
  const Inputs<T> in(c, random);
  num_threads = 1;
  Results<T> first(in);
  run(c, in, first);
  check(c, in, first);
  for (int64_t threads : {2, 5}) {
    num_threads = threads;
    Results<T> again(in);
    run(c, in, again);
    if (!again.same_bytes(first) && ++failures) std::printf("%ld threads are not as one\n", threads);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 200;
  Random random{1};
  for (int i = 0; i < cases; ++i) {
    const auto size = [&](int64_t most) { return 1 + random.below(random.below(3) == 0 ? most : 40); };
    Case c = {};
    c.B = 1 + random.below(2), c.H_kv = 1 + random.below(2), c.H = c.H_kv * (1 + random.below(2));
    c.L_q = size(150), c.L_k = size(300), c.D = size(80), c.D_v = size(80);
    if (i % 20 == 0) c.L_q = 400 + random.below(20), c.B = c.H_kv = c.H = 1;  // more than one chunk
    c.mask = random.below(3) == 0, c.bias = random.below(3) == 0, c.bias_shared = random.below(2) == 0;
    c.causal = static_cast<Causal>(random.below(3)), c.grad_lse = random.below(2) == 0;
    c.softcap = random.below(4) == 0 ? 2.0f : 0.0f;
    check_case<BFloat16>(c, random);
    if (i % 10 != 0) continue;  // tiles multiply fp32 where they are filled
    c.B = 1, c.H_kv = 1, c.H = 1 + random.below(2);
    c.L_q = (200 + random.below(210)) / c.H, c.L_k = 250 + random.below(60);
    c.D = 48 + random.below(33), c.D_v = 48 + random.below(33);
    check_case<float>(c, random);
  }
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures != 0;
}
