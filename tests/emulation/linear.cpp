// Runs the CUDA passes of linear on random rows in every dtype against a plain loop in fp64. Arguments:
// --schedule N, --large 1, --dtype fp32|fp16|bf16. Exit status 1 if a case fails.
#include "emulation/ops/linear.cpp"

#include <cmath>

#include "checked_memory.h"

namespace {

struct Case {
  int64_t M, N;
  double p;
};
// Vectors and single columns, several parts of rows, several blocks of columns.
const Case kSmall[] = {{9, 16, 0.0}, {37, 70, 0.4}, {1, 3, 0.4}, {150, 4, 0.0}};
const Case kLarge[] = {{300, 130, 0.4}, {200, 33, 0.0}};

int failures = 0;

void complain(const char* what, const char* why, const Case& c) {
  printf("FAIL %s %s M %lld N %lld p %g\n", why, what, static_cast<long long>(c.M),
         static_cast<long long>(c.N), c.p);
  ++failures;
}

bool kept(int64_t index, const int64_t* seed, uint32_t threshold) {
  const int64_t group = index / 4;
  const PhiloxWords words = philox({{static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), 0, 0}},
                                   static_cast<uint64_t>(*seed));
  return words.word[index % 4] >= threshold;
}

// tanh: the derivative comes from the output, before dropout's scale.
template <class T>
void run(const Case& c, DType dtype, double tolerance) {
  generator.seed(1);
  const int64_t count = c.M * c.N, seed = 3 - (int64_t{1} << 50);
  Array<T> pre(count), output(count), grad(count), grad_pre(count), grad_bias(c.N);
  pre.random(), grad.random();
  const Dropout dropout{c.p > 0, dropout_threshold(c.p), 1 / (1 - c.p), 1 - c.p, 0};
  const int64_t* words = c.p > 0 ? &seed : nullptr;
  const LinearActivation forward{count, dtype, Activation::kTanh, dropout, pre.data, output.data};
  int status = emulated_linear_activation_forward(&forward, words);
  const LinearActivationBackward backward{c.M,       c.N,         dtype,         Activation::kTanh, dropout,
                                          grad.data, output.data, grad_pre.data, grad_bias.data};
  Array<char> partial(static_cast<size_t>(emulated_linear_activation_backward_workspace(&backward)));
  status |= emulated_linear_activation_backward(&backward, words, partial.data);
  if (const char* error = emulation_take_error()) complain(error, "emulator", c);
  if (status) complain("launch", "status", c);
  bool right = true;
  for (int64_t column = 0; column < c.N; ++column) {
    double sum = 0, size = 1;
    for (int64_t row = 0; row < c.M; ++row) {
      const int64_t i = row * c.N + column;
      const bool keep = !words || kept(i, words, dropout.threshold);
      const double y = keep ? std::tanh(double(pre[i])) * dropout.scale : 0;
      const double saved = double(output[i]) * dropout.keep;
      const double g = keep ? double(grad[i]) * dropout.scale * (1 - saved * saved) : 0;
      right = right && std::fabs(double(output[i]) - y) <= tolerance * 4 &&
              std::fabs(double(grad_pre[i]) - g) <= tolerance * 16;
      sum += g, size += std::fabs(g);
    }
    right = right && std::fabs(double(grad_bias[column]) - sum) <= tolerance * size;
  }
  if (!right) complain("tanh", "wrong", c);
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
    if (wanted("fp32")) run<float>(c, DType::kFloat32, 1e-6);
    if (wanted("fp16")) run<__half>(c, DType::kFloat16, 1e-3);
    if (wanted("bf16")) run<__nv_bfloat16>(c, DType::kBFloat16, 8e-3);
  };
  for (const Case& c : kSmall) each(c);
  if (large)
    for (const Case& c : kLarge) each(c);
  if (!failures) puts("ok");
  return failures != 0;
}
