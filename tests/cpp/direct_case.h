// Checks a forward kernel of conv_relu_maxpool, and where there is one its backward, on one case against
// plain loops in fp64. Small integers must come out exact, NaN and infinities included; other values within
// the bound of the sum's rounding. 1, 2 and 4 threads bitwise equal.
#pragma once
#include "kernel_test.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"

namespace fastdl::test {

inline int failures = 0;
using Kernel = void (*)(const ConvReluMaxpoolForward&, const cpu::ThreadPool&);
using BackwardKernel = void (*)(const ConvReluMaxpoolBackward&, const cpu::ThreadPool&);

struct Case {
  ConvGeometry conv;
  PoolGeometry pool;
  bool x_channels_last, output_channels_last, has_bias, has_record;
  enum Kind { kIntegers, kNotFinite, kUniform } kind;
};

inline void fail(const Case& c, const char* dtype, const char* what, int64_t i, double got, double expected) {
  const ConvGeometry& g = c.conv;
  const PoolGeometry& p = c.pool;
  if (++failures > 20) return;
  std::printf(
      "%s %s x [%ld,%ld,%ld,%ld] %s weight [%ld,_,%ld,%ld] stride %ld,%ld padding %ld,%ld dilation %ld,%ld "
      "output %s "
      "pool %d %ldx%ld/%ld,%ld padding %ld,%ld dilation %ld,%ld: element %ld is %.9g, expected %.9g\n",
      what, dtype, g.N, g.C, g.H, g.W, c.x_channels_last ? "channels_last" : "contiguous", g.C_out, g.KH,
      g.KW, g.stride[0], g.stride[1], g.padding[0], g.padding[1], g.dilation[0], g.dilation[1],
      c.output_channels_last ? "channels_last" : "contiguous", p.present, p.size[0], p.size[1], p.stride[0],
      p.stride[1], p.padding[0], p.padding[1], p.dilation[0], p.dilation[1], i, got, expected);
}

template <class T>
class Check {
 public:
  Check(const Case& c, const char* dtype, Random& random, Kernel kernel, BackwardKernel backward)
      : c_(c),
        dtype_(dtype),
        kernel_(kernel),
        backward_(backward),
        x_(c.conv.N * c.conv.C * c.conv.H * c.conv.W),
        weight_(c.conv.C_out * c.conv.C * c.conv.KH * c.conv.KW),
        bias_(c.conv.C_out),
        output_(c.conv.N * c.conv.C_out * c.pool.OH * c.pool.OW),
        grad_output_(output_.size()),
        grad_weight_(weight_.size()),
        grad_bias_(c.conv.C_out),
        record_(output_.size()) {
    for (int64_t i = 0; i < output_.size(); ++i)
      assign(&grad_output_[i],
             c.kind == Case::kUniform ? random.uniform() : static_cast<double>(random.below(5) - 2));
    for (int64_t i = 0; i < x_.size(); ++i) {
      double v = c.kind == Case::kUniform ? random.uniform() : static_cast<double>(random.below(7) - 3);
      if (c.kind == Case::kNotFinite && random.below(60) == 0)
        v = random.below(2) ? NAN : (random.below(2) ? INFINITY : -INFINITY);
      assign(&x_[i], v);
    }
    for (int64_t i = 0; i < weight_.size(); ++i)
      assign(&weight_[i],
             c.kind == Case::kUniform ? random.uniform() : static_cast<double>(random.below(5) - 2));
    for (int64_t i = 0; i < bias_.size(); ++i) assign(&bias_[i], static_cast<double>(random.below(5) - 2));
    set_strides(c.conv.C, c.conv.H, c.conv.W, c.x_channels_last, x_strides_);
    set_strides(c.conv.C_out, c.pool.OH, c.pool.OW, c.output_channels_last, output_strides_);
  }

  void run() {
    forward(output_, record_, 1);
    compare();
    const bool has_backward =
        backward_ != nullptr && c_.kind != Case::kNotFinite && (c_.has_record || !c_.pool.present);
    if (has_backward) {
      backward(grad_weight_, grad_bias_, 1);
      compare_backward();
    }
    for (int64_t threads : {2, 4}) {
      Guarded<T> output(output_.size());
      Guarded<uint8_t> record(record_.size());
      forward(output, record, threads);
      if (!output.same_bytes(output_)) fail(c_, dtype_, "output changes with threads", 0, 0, 0);
      if (!record.same_bytes(record_)) fail(c_, dtype_, "record changes with threads", 0, 0, 0);
      if (!has_backward) continue;
      Guarded<T> grad_weight(weight_.size()), grad_bias(c_.conv.C_out);
      backward(grad_weight, grad_bias, threads);
      if (!grad_weight.same_bytes(grad_weight_))
        fail(c_, dtype_, "grad_weight changes with threads", 0, 0, 0);
      if (!grad_bias.same_bytes(grad_bias_)) fail(c_, dtype_, "grad_bias changes with threads", 0, 0, 0);
    }
  }

 private:
  void forward(Guarded<T>& output, Guarded<uint8_t>& record, int64_t threads) {
    ConvReluMaxpoolForward f = {};
    f.conv = c_.conv, f.pool = c_.pool, f.dtype = kDType<T>;
    f.x = x_.data(), f.weight = weight_.data(), f.bias = c_.has_bias ? bias_.data() : nullptr;
    f.output = output.data(), f.record = c_.pool.present && c_.has_record ? record.data() : nullptr;
    std::memcpy(f.x_strides, x_strides_, sizeof(x_strides_));
    std::memcpy(f.output_strides, output_strides_, sizeof(output_strides_));
    num_threads = threads;
    kernel_(f, kThreadPool);
  }

  void backward(Guarded<T>& grad_weight, Guarded<T>& grad_bias, int64_t threads) {
    ConvReluMaxpoolBackward b = {};
    b.conv = c_.conv, b.pool = c_.pool, b.dtype = kDType<T>;
    b.grad_output = grad_output_.data(), b.x = x_.data(), b.weight = weight_.data();
    b.record = c_.pool.present ? record_.data() : nullptr,
    b.output = c_.pool.present ? nullptr : output_.data();
    b.grad_weight = grad_weight.data(), b.grad_bias = grad_bias.data();
    std::memcpy(b.x_strides, x_strides_, sizeof(x_strides_));
    std::memcpy(b.grad_output_strides, output_strides_, sizeof(output_strides_));
    num_threads = threads;
    backward_(b, kThreadPool);
  }

  struct Sum {
    double value, magnitude;
    void add(double term) {
      value += term;
      magnitude += std::fabs(term);
    }
  };

  void compare_sums(const char* what, const std::vector<Sum>& sums, const Guarded<T>& got, double terms) {
    for (int64_t i = 0; i < got.size(); ++i) {
      const Sum& sum = sums[static_cast<size_t>(i)];
      T stored;
      assign(&stored, sum.value);
      const double eps[] = {0, 0x1p-24, 0x1p-11, 0x1p-8};
      const double limit =
          terms * 0x1p-24 * sum.magnitude + eps[static_cast<int>(kDType<T>)] * std::fabs(sum.value) + 0x1p-25;
      const bool right = c_.kind == Case::kUniform ? std::fabs(value(got[i]) - sum.value) <= limit
                                                   : value(got[i]) == value(stored);
      if (!right) fail(c_, dtype_, what, i, value(got[i]), sum.value);
    }
  }

  void compare_backward() {
    const ConvGeometry& g = c_.conv;
    const PoolGeometry& p = c_.pool;
    const int64_t taps = g.C * g.KH * g.KW;
    std::vector<Sum> weight(static_cast<size_t>(g.C_out * taps)), bias(static_cast<size_t>(g.C_out));
    for (int64_t n = 0; n < g.N; ++n)
      for (int64_t k = 0; k < g.C_out; ++k)
        for (int64_t i = 0; i < p.OH * p.OW; ++i) {
          const int64_t o = at(output_strides_, n, k, i / p.OW, i % p.OW);
          const int64_t named = p.present ? record_[o] : (value(output_[o]) <= 0 ? kReluClosed : 0);
          if (named == kReluClosed) continue;
          const double grad = value(grad_output_[o]);
          bias[static_cast<size_t>(k)].add(grad);
          const int64_t h = i / p.OW * p.stride[0] - p.padding[0] + named / p.size[1] * p.dilation[0];
          const int64_t w = i % p.OW * p.stride[1] - p.padding[1] + named % p.size[1] * p.dilation[1];
          for (int64_t t = 0; t < taps; ++t) {
            const int64_t ih = h * g.stride[0] - g.padding[0] + t / g.KW % g.KH * g.dilation[0];
            const int64_t iw = w * g.stride[1] - g.padding[1] + t % g.KW * g.dilation[1];
            if (ih < 0 || ih >= g.H || iw < 0 || iw >= g.W) continue;
            weight[static_cast<size_t>(k * taps + t)].add(
                grad * value(x_[at(x_strides_, n, t / g.KW / g.KH, ih, iw)]));
          }
        }
    const double terms = static_cast<double>(g.N * g.CH * g.CW) + 64;
    compare_sums("grad_weight", weight, grad_weight_, terms);
    compare_sums("grad_bias", bias, grad_bias_, terms);
  }

  Sum conv(int64_t n, int64_t k, int64_t h, int64_t w) const {
    const ConvGeometry& g = c_.conv;
    Sum sum = {0, 0};
    for (int64_t c = 0; c < g.C; ++c)
      for (int64_t y = 0; y < g.KH; ++y)
        for (int64_t x = 0; x < g.KW; ++x) {
          const int64_t ih = h * g.stride[0] - g.padding[0] + y * g.dilation[0];
          const int64_t iw = w * g.stride[1] - g.padding[1] + x * g.dilation[1];
          if (ih < 0 || ih >= g.H || iw < 0 || iw >= g.W) continue;
          const double term =
              value(x_[at(x_strides_, n, c, ih, iw)]) * value(weight_[((k * g.C + c) * g.KH + y) * g.KW + x]);
          sum.add(term);
        }
    return sum;
  }

  void compare() {
    const ConvGeometry& g = c_.conv;
    const PoolGeometry& p = c_.pool;
    std::vector<Sum> plane(static_cast<size_t>(g.CH * g.CW));
    for (int64_t n = 0; n < g.N; ++n)
      for (int64_t k = 0; k < g.C_out; ++k) {
        for (int64_t i = 0; i < g.CH * g.CW; ++i)
          plane[static_cast<size_t>(i)] = conv(n, k, i / g.CW, i % g.CW);
        for (int64_t oh = 0; oh < p.OH; ++oh)
          for (int64_t ow = 0; ow < p.OW; ++ow)
            compare_window(plane, k, oh, ow, at(output_strides_, n, k, oh, ow));
      }
  }

  void compare_window(const std::vector<Sum>& plane, int64_t k, int64_t oh, int64_t ow, int64_t o) {
    const ConvGeometry& g = c_.conv;
    const PoolGeometry& p = c_.pool;
    const double bias = c_.has_bias ? value(bias_[k]) : 0;
    const auto tap = [&](int64_t i) -> const Sum* {
      const int64_t h = oh * p.stride[0] - p.padding[0] + i / p.size[1] * p.dilation[0];
      const int64_t w = ow * p.stride[1] - p.padding[1] + i % p.size[1] * p.dilation[1];
      return h < 0 || h >= g.CH || w < 0 || w >= g.CW ? nullptr : &plane[static_cast<size_t>(h * g.CW + w)];
    };
    double best = -INFINITY, magnitude = 0;
    int64_t where = -1;
    for (int64_t i = 0; i < p.size[0] * p.size[1]; ++i)
      if (const Sum* s = tap(i)) {
        magnitude = std::fmax(magnitude, s->magnitude);
        if (where < 0 || s->value > best || s->value != s->value) best = s->value, where = i;
      }
    T stored;
    assign(&stored, best + bias);
    const bool closed = value(stored) <= 0;
    const double expected = closed ? 0 : value(stored), got = value(output_[o]);
    const bool recorded = p.present && c_.has_record;
    if (c_.kind != Case::kUniform) {
      if (!(got == expected || (got != got && expected != expected)))
        fail(c_, dtype_, "output", o, got, expected);
      const int64_t k_expected = closed ? kReluClosed : where;
      if (recorded && record_[o] != k_expected)
        fail(c_, dtype_, "record", o, record_[o], static_cast<double>(k_expected));
      return;
    }
    const double exact = best + bias > 0 ? best + bias : 0;
    const double eps[] = {0, 0x1p-24, 0x1p-11, 0x1p-8};
    const double terms = static_cast<double>(g.C * g.KH * g.KW) + 1;
    const double limit =
        terms * 0x1p-24 * (magnitude + std::fabs(bias)) + eps[static_cast<int>(kDType<T>)] * exact + 0x1p-25;
    if (!(std::fabs(got - exact) <= limit)) fail(c_, dtype_, "output", o, got, exact);
    if (!recorded) return;
    if (record_[o] == kReluClosed ? got != 0 : !(got > 0)) fail(c_, dtype_, "closed", o, record_[o], got);
    if (record_[o] == kReluClosed) return;
    const Sum* named = record_[o] < p.size[0] * p.size[1] ? tap(record_[o]) : nullptr;
    if (named == nullptr || best - named->value > 2 * limit) fail(c_, dtype_, "record", o, record_[o], where);
  }

  const Case c_;
  const char* dtype_;
  const Kernel kernel_;
  const BackwardKernel backward_;
  Guarded<T> x_, weight_, bias_, output_, grad_output_, grad_weight_, grad_bias_;
  Guarded<uint8_t> record_;
  int64_t x_strides_[4], output_strides_[4];
};

// Less than `images` images; one case in four has up to so many channels, the others up to 4 and 40.
inline Case draw(Random& random, int64_t images, int64_t most_channels, int64_t most_outputs) {
  Case c = {};
  ConvGeometry& g = c.conv;
  const int64_t kernels[] = {1, 2, 3, 3, 3, 5, 7};
  g.N = random.below(images), g.C = 1 + random.below(random.below(4) ? 4 : most_channels),
  g.H = 1 + random.below(18);
  g.W = 1 + random.below(40), g.C_out = 1 + random.below(random.below(4) ? 40 : most_outputs), g.groups = 1;
  g.KH = kernels[random.below(7)], g.KW = random.below(4) ? g.KH : kernels[random.below(7)];
  for (int i = 0; i < 2; ++i) {
    g.stride[i] = random.below(2) ? 1 : 1 + random.below(4);
    g.padding[i] = random.below(4);
    g.dilation[i] = random.below(2) ? 1 : 1 + random.below(3);
  }
  g.CH = pooled_size(g.H, g.KH, g.stride[0], g.padding[0], g.dilation[0], false);
  g.CW = pooled_size(g.W, g.KW, g.stride[1], g.padding[1], g.dilation[1], false);
  PoolGeometry& p = c.pool;
  p = {random.below(3) != 0, {1, 1}, {1, 1}, {0, 0}, {1, 1}, g.CH, g.CW};
  if (p.present) {
    const bool paired = random.below(2) == 1, ceil = !paired && random.below(2) == 1;
    for (int i = 0; i < 2; ++i) {
      p.size[i] = paired ? 2 : 1 + random.below(4), p.stride[i] = paired ? 2 : 1 + random.below(4);
      p.padding[i] = paired ? 0 : random.below(p.size[i] / 2 + 1),
      p.dilation[i] = paired ? 1 : 1 + random.below(2);
    }
    p.OH = pooled_size(g.CH, p.size[0], p.stride[0], p.padding[0], p.dilation[0], ceil);
    p.OW = pooled_size(g.CW, p.size[1], p.stride[1], p.padding[1], p.dilation[1], ceil);
  }
  c.x_channels_last = random.below(2) == 1, c.output_channels_last = random.below(2) == 1;
  c.has_bias = random.below(4) != 0, c.has_record = random.below(4) != 0;
  c.kind = static_cast<Case::Kind>(random.below(3));
  return c;
}

}  // namespace fastdl::test
