// The kernels of linear against plain loops in double: dtypes, activations, dropout, tails, NaN, threads.
// Small integers must come out exact. Tensors end at an unreadable page; 1, 2 and 4 threads are bitwise
// equal. Exits 1 on failure.
// links ops/linear/dot_cpu.cpp
// links ops/linear/pass_cpu.cpp
#include "common/philox.h"
#include "kernel_test.h"
#include "ops/linear/linear_cpu.h"

using namespace fastdl;
using namespace fastdl::test;

namespace {

int failures = 0;

struct Case {
  int64_t M, N, K;
  Activation activation;
  Dropout dropout;
  bool has_bias, integers;
};

bool kept(const Dropout& d, int64_t i) {
  const uint64_t group = static_cast<uint64_t>(i / 4);
  const PhiloxWords counter = {{static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), 0, 0}};
  return !d.present || philox(counter, d.seed).word[i % 4] >= d.threshold;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double activate(Activation a, double x) {
  switch (a) {
    case Activation::kRelu:
      return x <= 0 ? 0 : x;
    case Activation::kGelu:
      return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kSilu:
      return x * sigmoid(x);
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kSigmoid:
      return sigmoid(x);
    default:
      return x;
  }
}

// By a central difference of activate(), the output inverted first where the kernel is given the output.
double slope(Activation a, double saved) {
  if (a == Activation::kNone) return 1;
  if (a == Activation::kRelu) return saved <= 0 ? 0 : 1;
  if (a == Activation::kTanh) return 1 - saved * saved;
  if (a == Activation::kSigmoid) return saved * (1 - saved);
  const double h = 1e-5;
  return (activate(a, saved + h) - activate(a, saved - h)) / (2 * h);
}

template <class T>
double resolution() {
  return sizeof(T) == 8 ? 1e-9 : sizeof(T) == 4 ? 1e-5 : kDType<T> == DType::kFloat16 ? 2e-3 : 1e-2;
}

template <class T>
void compare(const Case& c, const char* what, int64_t i, T got, double expected, double magnitude) {
  const double g = value(got);
  T rounded;
  assign(&rounded, expected);
  const bool exact = c.integers && (c.activation == Activation::kNone || c.activation == Activation::kRelu);
  const bool same = std::isnan(expected) ? std::isnan(g)
                    : exact              ? g == value(rounded)
                                         : std::fabs(g - expected) <= resolution<T>() * (magnitude + 1);
  if (same || ++failures > 20) return;
  std::printf("%s dtype %d [%ld, %ld, %ld] activation %d dropout %d: element %ld is %.9g, expected %.9g\n",
              what, static_cast<int>(kDType<T>), c.M, c.N, c.K, static_cast<int>(c.activation),
              c.dropout.present, i, g, expected);
}

template <class T>
Guarded<T> drawn(int64_t count, const Case& c, Random& random, double spread) {
  Guarded<T> t(count);
  for (int64_t i = 0; i < count; ++i)
    assign(&t[i], c.integers ? static_cast<double>(random.below(3) - 1) : random.uniform() * spread);
  return t;
}

template <class T>
void check_product(const Case& c, Random& random) {
  const Guarded<T> x = drawn<T>(c.M * c.K, c, random, 1), weight = drawn<T>(c.N * c.K, c, random, 1),
                   bias = drawn<T>(c.N, c, random, 1);
  Guarded<T> first(c.M * c.N);
  for (int64_t threads : {1, 2, 4}) {
    num_threads = threads;
    Guarded<T> output(c.M * c.N), pre(c.M * c.N);
    LinearForward args{c.M, c.N, c.K, kDType<T>, c.activation, c.dropout, x.data(), weight.data()};
    args.bias = c.has_bias ? bias.data() : nullptr;
    args.output = output.data();
    args.pre = pre.data();
    cpu::linear_dot_forward(args, kThreadPool);
    if (threads > 1) {
      if (!output.same_bytes(first) && ++failures) std::printf("another result with %ld threads\n", threads);
      continue;
    }
    for (int64_t i = 0; i < c.M * c.N; ++i) {
      double sum = c.has_bias ? value(bias[i % c.N]) : 0;
      for (int64_t k = 0; k < c.K; ++k) sum += value(x[i / c.N * c.K + k]) * value(weight[i % c.N * c.K + k]);
      compare(c, "pre", i, pre[i], sum, static_cast<double>(c.K));
      const double y = kept(c.dropout, i) ? activate(c.activation, sum) * c.dropout.scale : 0;
      compare(c, "output", i, output[i], y, static_cast<double>(c.K) * c.dropout.scale);
    }
    first = std::move(output);
  }
}

template <class T>
void check_passes(const Case& c, Random& random) {
  const int64_t count = c.M * c.N;
  Guarded<T> pre = drawn<T>(count, c, random, 4), grad_output = drawn<T>(count, c, random, 1);
  assign(&pre[random.below(count)], c.integers ? 0x1p-130 : NAN);  // a denormal stays one
  Guarded<T> output(count), first_grad(count), first_bias(c.N);
  LinearActivation forward{count, kDType<T>, c.activation, c.dropout, pre.data(), output.data()};
  num_threads = 2;
  cpu::linear_activation_forward(forward, kThreadPool);
  for (int64_t i = 0; i < count; ++i) {
    const double y = kept(c.dropout, i) ? activate(c.activation, value(pre[i])) * c.dropout.scale : 0;
    compare(c, "pass", i, output[i], y, 4 * c.dropout.scale);
  }
  const bool by_output = c.activation == Activation::kRelu || c.activation == Activation::kTanh ||
                         c.activation == Activation::kSigmoid;
  for (int64_t threads : {1, 2, 4}) {
    num_threads = threads;
    Guarded<T> grad_pre(count), grad_bias(c.N);
    LinearActivationBackward args{c.M, c.N, kDType<T>, c.activation, c.dropout, grad_output.data()};
    args.saved = c.activation == Activation::kNone ? nullptr : by_output ? output.data() : pre.data();
    args.grad_pre = grad_pre.data();
    args.grad_bias = grad_bias.data();
    cpu::linear_activation_backward(args, kThreadPool);
    if (threads > 1) {
      if (!(grad_pre.same_bytes(first_grad) && grad_bias.same_bytes(first_bias)) && ++failures)
        std::printf("another gradient with %ld threads\n", threads);
      continue;
    }
    std::vector<double> sums(static_cast<size_t>(c.N));
    for (int64_t i = 0; i < count; ++i) {
      double saved = value(by_output ? output[i] : pre[i]);
      if (by_output && c.activation != Activation::kRelu) saved *= c.dropout.keep;
      double g = value(grad_output[i]) * slope(c.activation, saved) * c.dropout.scale;
      if (!kept(c.dropout, i)) g = 0;
      compare(c, "grad_pre", i, grad_pre[i], g, 4 * c.dropout.scale);
      sums[static_cast<size_t>(i % c.N)] += g;
    }
    for (int64_t j = 0; j < c.N; ++j)
      compare(c, "grad_bias", j, grad_bias[j], sums[static_cast<size_t>(j)],
              static_cast<double>(c.M) * c.dropout.scale);
    first_grad = std::move(grad_pre);
    first_bias = std::move(grad_bias);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 200;
  Random random{1};
  for (int i = 0; i < cases; ++i) {
    const auto size = [&](int64_t most) { return 1 + random.below(random.below(4) == 0 ? most : 24); };
    Case c{size(120), size(150), size(1200), static_cast<Activation>(i % kActivations), {false, 0, 1, 1, 0}};
    if (random.below(3) == 0) c.dropout = {true, dropout_threshold(0.5), 2, 0.5, random.next()};
    c.has_bias = random.below(2) == 0;
    c.integers = random.below(2) == 0;
    check_product<float>(c, random);
    check_product<Float16>(c, random);
    check_product<BFloat16>(c, random);
    check_passes<double>(c, random);
    check_passes<float>(c, random);
    check_passes<Float16>(c, random);
    check_passes<BFloat16>(c, random);
  }
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures != 0;
}
