// bias_relu_maxpool against plain loops: every dtype, both memory formats, random geometries, ties, NaN,
// infinities, damaged records, 1, 2 and 4 threads bitwise equal. FASTDL_CPU_ISA picks the instruction set.
// Exits 1 on failure.
// links ops/conv_relu_maxpool/bias_relu_maxpool_cpu.cpp
#include "kernel_test.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"

using namespace fastdl;
using namespace fastdl::test;

namespace {

int failures = 0;

struct Case {
  int64_t N, C, CH, CW;
  PoolGeometry pool;
  bool channels_last, has_bias;
};

void fail(const Case& c, const char* dtype, const char* what, int64_t i, double got, double expected) {
  const PoolGeometry& p = c.pool;
  if (++failures > 20) return;
  std::printf(
      "%s %s [%ld,%ld,%ld,%ld] %s pool %d size %ldx%ld stride %ld,%ld padding %ld,%ld dilation %ld,%ld: "
      "element %ld is %.9g, expected %.9g\n",
      what, dtype, c.N, c.C, c.CH, c.CW, c.channels_last ? "channels_last" : "contiguous", p.present,
      p.size[0], p.size[1], p.stride[0], p.stride[1], p.padding[0], p.padding[1], p.dilation[0],
      p.dilation[1], i, got, expected);
}

bool same(double a, double b) { return a == b || (a != a && b != b); }

template <class T>
class Check {
 public:
  Check(const Case& c, const char* dtype, Random& random)
      : c_(c),
        dtype_(dtype),
        conv_(c.N * c.C * c.CH * c.CW),
        bias_(c.C),
        output_(c.N * c.C * c.pool.OH * c.pool.OW),
        grad_output_(output_.size()),
        grad_conv_(conv_.size()),
        grad_bias_(c.C),
        record_(output_.size()) {
    const int64_t kind = random.below(3);
    for (int64_t i = 0; i < conv_.size(); ++i) {
      double x = kind == 2 ? random.uniform() : static_cast<double>(random.below(9) - 5);  // ties
      if (kind == 1 && random.below(10) == 0)
        x = random.below(2) ? NAN : (random.below(2) ? INFINITY : -INFINITY);
      assign(&conv_[i], x);
    }
    for (int64_t i = 0; i < c.C; ++i) assign(&bias_[i], static_cast<double>(random.below(3) - 1));
    for (int64_t i = 0; i < output_.size(); ++i) assign(&grad_output_[i], random.uniform());
    set_strides(c.C, c.CH, c.CW, c.channels_last, conv_strides_);
    set_strides(c.C, c.pool.OH, c.pool.OW, c.channels_last, output_strides_);
  }

  void run(bool damage, Random& random) {
    forward(output_, record_, 1);
    compare_forward();
    if (c_.pool.present && damage)
      for (int64_t i = 0; i < record_.size(); ++i)
        if (random.below(5) == 0) record_[i] = static_cast<uint8_t>(random.below(256));
    backward(grad_conv_, grad_bias_, 1);
    compare_backward();
    for (int64_t threads : {2, 4}) {
      Guarded<T> output(output_.size()), grad_conv(conv_.size()), grad_bias(c_.C);
      Guarded<uint8_t> record(record_.size());
      backward(grad_conv, grad_bias, threads);
      forward(output, record, threads);
      if (!output.same_bytes(output_)) fail(c_, dtype_, "output changes with threads", 0, 0, 0);
      if (!damage && !record.same_bytes(record_)) fail(c_, dtype_, "record changes with threads", 0, 0, 0);
      if (!grad_conv.same_bytes(grad_conv_)) fail(c_, dtype_, "grad_conv changes with threads", 0, 0, 0);
      if (!grad_bias.same_bytes(grad_bias_)) fail(c_, dtype_, "grad_bias changes with threads", 0, 0, 0);
    }
    if (!c_.pool.present) {
      Guarded<T> output(output_.size());
      std::memcpy(output.data(), conv_.data(), static_cast<size_t>(output.size()) * sizeof(T));
      std::swap(conv_, output);
      forward(conv_, record_, 1);
      if (!conv_.same_bytes(output_)) fail(c_, dtype_, "output in the place of conv", 0, 0, 0);
    }
  }

 private:
  void forward(Guarded<T>& output, Guarded<uint8_t>& record, int64_t threads) {
    BiasReluMaxpoolForward f = {};
    f.N = c_.N, f.C = c_.C, f.CH = c_.CH, f.CW = c_.CW, f.pool = c_.pool, f.dtype = kDType<T>;
    f.conv = conv_.data(), f.bias = c_.has_bias ? bias_.data() : nullptr, f.output = output.data();
    f.record = c_.pool.present ? record.data() : nullptr;
    std::memcpy(f.conv_strides, conv_strides_, sizeof(conv_strides_));
    std::memcpy(f.output_strides, output_strides_, sizeof(output_strides_));
    num_threads = threads;
    cpu::bias_relu_maxpool_forward(f, kThreadPool);
  }

  void backward(Guarded<T>& grad_conv, Guarded<T>& grad_bias, int64_t threads) {
    BiasReluMaxpoolBackward b = {};
    b.N = c_.N, b.C = c_.C, b.CH = c_.CH, b.CW = c_.CW, b.pool = c_.pool, b.dtype = kDType<T>;
    b.grad_output = grad_output_.data(), b.record = c_.pool.present ? record_.data() : nullptr;
    b.output = c_.pool.present ? nullptr : output_.data();
    b.grad_conv = grad_conv.data(), b.grad_bias = grad_bias.data();
    std::memcpy(b.grad_output_strides, output_strides_, sizeof(output_strides_));
    std::memcpy(b.grad_conv_strides, conv_strides_, sizeof(conv_strides_));
    num_threads = threads;
    cpu::bias_relu_maxpool_backward(b, kThreadPool);
  }

  // f(n, c, oh, ow, index of the pooled element)
  template <class F>
  void each_pooled(const F& f) const {
    for (int64_t n = 0; n < c_.N; ++n)
      for (int64_t k = 0; k < c_.C; ++k)
        for (int64_t oh = 0; oh < c_.pool.OH; ++oh)
          for (int64_t ow = 0; ow < c_.pool.OW; ++ow) f(n, k, oh, ow, at(output_strides_, n, k, oh, ow));
  }

  // The index in conv of tap k of a window, or -1 outside.
  int64_t position(int64_t n, int64_t c, int64_t oh, int64_t ow, int64_t k) const {
    const PoolGeometry& p = c_.pool;
    const int64_t h = oh * p.stride[0] - p.padding[0] + k / p.size[1] * p.dilation[0];
    const int64_t w = ow * p.stride[1] - p.padding[1] + k % p.size[1] * p.dilation[1];
    return h < 0 || h >= c_.CH || w < 0 || w >= c_.CW ? -1 : at(conv_strides_, n, c, h, w);
  }

  void compare_forward() {
    each_pooled([&](int64_t n, int64_t c, int64_t oh, int64_t ow, int64_t o) {
      double best = -INFINITY;
      int64_t where = -1;
      for (int64_t k = 0; k < c_.pool.size[0] * c_.pool.size[1]; ++k) {
        const int64_t i = position(n, c, oh, ow, k);
        if (i < 0) continue;
        const double v = value(conv_[i]);
        if (where < 0 || v > best || v != v) best = v, where = k;
      }
      const double sum = best + (c_.has_bias ? value(bias_[c]) : 0);
      T stored;
      assign(&stored, sizeof(T) == 8 ? sum : static_cast<float>(sum));
      const bool closed = value(stored) <= 0;
      const double expected = closed ? 0 : value(stored);
      if (!same(value(output_[o]), expected)) fail(c_, dtype_, "output", o, value(output_[o]), expected);
      const int64_t k = closed ? kReluClosed : where;
      if (c_.pool.present && record_[o] != k)
        fail(c_, dtype_, "record", o, record_[o], static_cast<double>(k));
    });
  }

  void compare_backward() {
    using Scalar = std::conditional_t<sizeof(T) == 8, double, float>;
    std::vector<Scalar> conv(static_cast<size_t>(conv_.size()));
    std::vector<double> bias(static_cast<size_t>(c_.C)), magnitude(bias);
    each_pooled([&](int64_t n, int64_t c, int64_t oh, int64_t ow, int64_t o) {
      const int64_t k = c_.pool.present ? record_[o] : (value(output_[o]) <= 0 ? kReluClosed : 0);
      if (k >= c_.pool.size[0] * c_.pool.size[1]) return;
      const double grad = value(grad_output_[o]);
      bias[static_cast<size_t>(c)] += grad;
      magnitude[static_cast<size_t>(c)] += std::fabs(grad);
      const int64_t i = position(n, c, oh, ow, k);
      if (i >= 0) conv[static_cast<size_t>(i)] += static_cast<Scalar>(grad);
    });
    for (int64_t i = 0; i < conv_.size(); ++i) {
      T stored;
      assign(&stored, conv[static_cast<size_t>(i)]);
      if (value(grad_conv_[i]) != value(stored))
        fail(c_, dtype_, "grad_conv", i, value(grad_conv_[i]), value(stored));
    }
    const double eps[] = {1e-15, 3e-7, 0x1p-11, 0x1p-8};
    for (int64_t i = 0; i < c_.C; ++i) {
      const size_t c = static_cast<size_t>(i);
      const int type = static_cast<int>(kDType<T>);
      const double limit = eps[type] * std::fabs(bias[c]) + (type == 0 ? 1e-15 : 3e-7) * magnitude[c];
      if (!(std::fabs(value(grad_bias_[i]) - bias[c]) <= limit))
        fail(c_, dtype_, "grad_bias", i, value(grad_bias_[i]), bias[c]);
    }
  }

  const Case c_;
  const char* dtype_;
  Guarded<T> conv_, bias_, output_, grad_output_, grad_conv_, grad_bias_;
  Guarded<uint8_t> record_;
  int64_t conv_strides_[4], output_strides_[4];
};

PoolGeometry pooled(int64_t CH, int64_t CW, const int64_t (&size)[2], const int64_t (&stride)[2],
                    const int64_t (&padding)[2], const int64_t (&dilation)[2], bool ceil) {
  PoolGeometry p = {true,
                    {size[0], size[1]},
                    {stride[0], stride[1]},
                    {padding[0], padding[1]},
                    {dilation[0], dilation[1]},
                    0,
                    0};
  p.OH = pooled_size(CH, size[0], stride[0], padding[0], dilation[0], ceil);
  p.OW = pooled_size(CW, size[1], stride[1], padding[1], dilation[1], ceil);
  return p;
}

Case draw(Random& random) {
  Case c = {random.below(4),
            1 + random.below(random.below(4) ? 6 : 70),
            1 + random.below(20),
            1 + random.below(40),
            {},
            random.below(2) == 1,
            random.below(4) != 0};
  switch (random.below(4)) {
    case 0:
      c.pool = {false, {1, 1}, {1, 1}, {0, 0}, {1, 1}, c.CH, c.CW};
      break;
    case 1:
      c.pool = pooled(c.CH, c.CW, {2, 2}, {2, 2}, {0, 0}, {1, 1}, random.below(2) == 1);
      break;
    case 2:
      c.pool = pooled(c.CH, c.CW, {3, 3}, {2, 2}, {random.below(2), random.below(2)}, {1, 1},
                      random.below(2) == 1);
      break;
    default:
      const int64_t size[2] = {1 + random.below(5), 1 + random.below(5)};
      c.pool = pooled(c.CH, c.CW, size, {1 + random.below(6), 1 + random.below(6)},
                      {random.below(size[0] / 2 + 1), random.below(size[1] / 2 + 1)},
                      {1 + random.below(3), 1 + random.below(3)}, random.below(2) == 1);
  }
  return c;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? std::atoi(argv[1]) : 500;
  Random random = {1};
  int64_t checked = 0;
  for (int64_t i = 0; i < cases; ++i) {
    const Case c = draw(random);
    if (c.pool.OH <= 0 || c.pool.OW <= 0) continue;
    ++checked;
    const bool damage = random.below(4) == 0;
    Check<double>(c, "fp64", random).run(damage, random);
    Check<float>(c, "fp32", random).run(damage, random);
    Check<Float16>(c, "fp16", random).run(damage, random);
    Check<BFloat16>(c, "bf16", random).run(damage, random);
  }
  std::printf("bias_relu_maxpool: %ld geometries, %d failures\n", checked, failures);
  return failures != 0;
}
