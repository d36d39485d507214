// depthwise_conv2d, and in fp32 implicit_gemm_conv2d, against plain loops in fp64, with what follows the
// sums: scale, bias, residual, activation. Small integers must come out exact, NaN and infinities included;
// other values within the bound of the sum's rounding. 1, 2 and 4 threads bitwise equal. FASTDL_CPU_ISA picks
// the instruction set. Exits 1 on failure.
// links ops/conv2d/depthwise_cpu.cpp
// links ops/conv_relu_maxpool/implicit_gemm_cpu.cpp
#include "kernel_test.h"
#include "ops/conv2d/conv2d_cpu.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"

using namespace fastdl;
using namespace fastdl::test;

namespace {

int failures = 0;

struct Case {
  ConvGeometry conv;
  bool has_scale, has_bias, has_residual;
  Activation activation;
  enum Kind { kIntegers, kNotFinite, kUniform } kind;
};

void fail(const Case& c, const char* what, int64_t i, double got, double expected) {
  const ConvGeometry& g = c.conv;
  if (++failures > 20) return;
  std::printf(
      "%s x [%ld,%ld,%ld,%ld] weight [%ld,_,%ld,%ld] groups %ld stride %ld,%ld padding %ld,%ld dilation "
      "%ld,%ld "
      "scale %d bias %d residual %d activation %d: element %ld is %.9g, expected %.9g\n",
      what, g.N, g.C, g.H, g.W, g.C_out, g.KH, g.KW, g.groups, g.stride[0], g.stride[1], g.padding[0],
      g.padding[1], g.dilation[0], g.dilation[1], c.has_scale, c.has_bias, c.has_residual,
      static_cast<int>(c.activation), i, got, expected);
}

double activated(double x, Activation activation) {
  const double six = x != x ? x : std::fmin(std::fmax(x, 0), 6);
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return x <= 0 ? 0 : x;
    case Activation::kRelu6:
      return six;
    case Activation::kGelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::kHardswish:
      return x * std::fmin(std::fmax(x + 3, 0), 6) / 6;
  }
  return NAN;
}

template <class T, class Kernel>
void check(const Case& c, const char* what, Random& random, Kernel kernel) {
  const ConvGeometry& g = c.conv;
  const int64_t C = g.C / g.groups, taps = C * g.KH * g.KW, plane = g.CH * g.CW;
  Guarded<T> x(g.N * g.C * g.H * g.W), weight(g.C_out * taps), scale(g.C_out), bias(g.C_out);
  Guarded<T> residual(g.N * g.C_out * plane), output(residual.size());
  const bool uniform = c.kind == Case::kUniform;
  const auto draw = [&](Guarded<T>& to, int64_t most) {
    for (int64_t i = 0; i < to.size(); ++i)
      assign(&to[i], uniform ? random.uniform() : static_cast<double>(random.below(2 * most + 1) - most));
  };
  draw(x, 3), draw(weight, 2), draw(bias, 2), draw(residual, 2);
  for (int64_t i = 0; i < scale.size(); ++i)
    assign(&scale[i], uniform ? random.uniform() : (random.below(2) ? 1.0 : -1.0));
  for (int64_t i = 0; c.kind == Case::kNotFinite && i < x.size(); ++i)
    if (random.below(60) == 0) assign(&x[i], random.below(2) ? NAN : random.below(2) ? INFINITY : -INFINITY);

  Conv2dForward f = {};
  f.conv = g, f.dtype = kDType<T>, f.x = x.data(), f.weight = weight.data(), f.activation = c.activation;
  f.scale = c.has_scale ? scale.data() : nullptr, f.bias = c.has_bias ? bias.data() : nullptr;
  f.residual = c.has_residual ? residual.data() : nullptr, f.output = output.data();
  set_strides(g.C, g.H, g.W, false, f.x_strides);
  set_strides(g.C_out, g.CH, g.CW, false, f.output_strides);
  num_threads = 1;
  kernel(f, kThreadPool);
  for (int64_t threads : {2, 4}) {
    Guarded<T> again(output.size());
    f.output = again.data(), num_threads = threads;
    kernel(f, kThreadPool);
    if (!again.same_bytes(output)) fail(c, what, -threads, 0, 0);
  }

  for (int64_t i = 0; i < output.size(); ++i) {
    const int64_t w = i % g.CW, h = i / g.CW % g.CH, k = i / plane % g.C_out, n = i / plane / g.C_out;
    const int64_t first = k / (g.C_out / g.groups) * C;
    double sum = 0, magnitude = 0;
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t ih = h * g.stride[0] - g.padding[0] + t / g.KW % g.KH * g.dilation[0];
      const int64_t iw = w * g.stride[1] - g.padding[1] + t % g.KW * g.dilation[1];
      if (ih < 0 || ih >= g.H || iw < 0 || iw >= g.W) continue;
      const int64_t from = ((n * g.C + first + t / g.KW / g.KH) * g.H + ih) * g.W + iw;
      const double term = value(x[from]) * value(weight[k * taps + t]);
      sum += term, magnitude += std::fabs(term);
    }
    const double scales = c.has_scale ? value(scale[k]) : 1, biases = c.has_bias ? value(bias[k]) : 0;
    double expected = sum * scales + biases;
    magnitude = magnitude * std::fabs(scales) + std::fabs(biases);
    if (c.has_residual) expected += value(residual[i]), magnitude += std::fabs(value(residual[i]));
    const double pre = expected;
    expected = activated(pre, c.activation);
    const double got = value(output[i]);
    if (uniform) {
      const double eps[] = {0, 0x1p-24, 0x1p-11, 0x1p-8};
      // Beyond a ReLU the sum is rounded to T, and the activation, no steeper than 1.2, adds its own error.
      const bool smooth = c.activation > Activation::kRelu;
      const double own = smooth ? 1.2 * std::fabs(pre) : 0;
      const double limit = (smooth ? 1.2 : 1) * static_cast<double>(taps + 4) * 0x1p-24 * magnitude +
                           (smooth ? 0x1p-22 * std::fabs(expected) : 0) +
                           eps[static_cast<int>(kDType<T>)] * (std::fabs(expected) + own) +
                           (smooth ? 2.2 : 1) * 0x1p-25;
      if (!(std::fabs(got - expected) <= limit)) fail(c, what, i, got, expected);
    } else {
      T stored;
      assign(&stored, expected);
      if (!(got == value(stored) || (got != got && expected != expected))) fail(c, what, i, got, expected);
    }
  }
}

Case draw(Random& random, bool depthwise) {
  Case c = {};
  ConvGeometry& g = c.conv;
  const int64_t kernels[] = {1, 2, 3, 3, 4, 5, 7};
  // A plane in one part or in many, rows of less than a vector and of many.
  g.N = 1 + random.below(3), g.H = 1 + random.below(random.below(5) ? 24 : 120), g.W = 1 + random.below(60);
  if (random.below(12) == 0) g.H = 1 + random.below(3), g.W = 500 + random.below(4000);
  g.KH = kernels[random.below(7)], g.KW = random.below(4) ? g.KH : kernels[random.below(7)];
  const bool plain = random.below(2) == 1;
  for (int i = 0; i < 2; ++i) {
    g.stride[i] = 1 + random.below(plain ? 2 : 4), g.padding[i] = random.below(plain ? 3 : 6);
    g.dilation[i] = plain ? 1 : 1 + random.below(3);
  }
  g.C = 1 + random.below(g.H * g.W > 1500 ? 4 : 20), g.groups = depthwise ? g.C : 1;
  g.C_out = depthwise ? g.C * (1 + random.below(3) / 2) : 1 + random.below(40);
  // Sums of several blocks of channels, of a panel that is not whole.
  if (!depthwise && random.below(8) == 0) g.C = 250 + random.below(150), g.H = g.W = 1 + random.below(9);
  g.CH = pooled_size(g.H, g.KH, g.stride[0], g.padding[0], g.dilation[0], false);
  g.CW = pooled_size(g.W, g.KW, g.stride[1], g.padding[1], g.dilation[1], false);
  c.has_scale = random.below(2) == 1, c.has_bias = random.below(3) != 0;
  c.has_residual = random.below(2) == 1;
  c.kind = static_cast<Case::Kind>(random.below(3));
  // Of integers, those whose results are.
  const Activation exact[] = {Activation::kNone, Activation::kRelu, Activation::kRelu6};
  const Activation any = static_cast<Activation>(random.below(static_cast<int>(Activation::kHardswish) + 1));
  c.activation = c.kind == Case::kUniform ? any : exact[random.below(3)];
  return c;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? std::atoi(argv[1]) : 500;
  Random random = {1};
  int64_t checked = 0;
  for (int64_t i = 0; i < 2 * cases; ++i) {
    const Case c = draw(random, i % 2 == 0);
    if (c.conv.CH <= 0 || c.conv.CW <= 0) continue;
    ++checked;
    if (c.conv.groups != c.conv.C || c.conv.C == 1)
      check<float>(c, "implicit GEMM", random, cpu::implicit_gemm_conv2d);
    if (c.conv.groups != c.conv.C) continue;
    check<float>(c, "depthwise fp32", random, cpu::depthwise_conv2d);
    check<Float16>(c, "depthwise fp16", random, cpu::depthwise_conv2d);
    check<BFloat16>(c, "depthwise bf16", random, cpu::depthwise_conv2d);
  }
  std::printf("conv2d: %ld geometries, %d failures\n", checked, failures);
  return failures != 0;
}
