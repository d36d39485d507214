// Runs the CUDA kernels of diffusion on random steps: every dtype against fp64, 16 bytes at a time and one
// element at a time. What fp64 should give is tests/ops/test_diffusion_cuda.py's. Arguments: --schedule N,
// --large 1, --dtype fp32|fp16|bf16. Exit status 1 if a case fails.
#include "emulation/ops/diffusion.cpp"

#include <cmath>
#include <vector>

#include "checked_memory.h"

namespace {

struct Case {
  int64_t samples, size;
  bool guided;
  Limit limit;
  bool history, made, each;
  double rescale = 0;
};
const Case kSmall[] = {
    {2, 24, true, Limit::kClip, true, false, true},
    {3, 7, true, Limit::kNone, false, true, true},
    {3, 40, false, Limit::kClip, false, true, false},
    {1, 1, false, Limit::kNone, true, false, false},
    {5, 16, true, Limit::kClip, false, true, false},
    {3, 40, true, Limit::kThreshold, false, true, false, 0.7},
    {2, 7, true, Limit::kClip, true, false, true, 0.7},
    {2, 24, false, Limit::kThreshold, true, false, true},
    {2, 1026, true, Limit::kThreshold, false, false, true, 0.7},  // in fp64 for a cluster of two blocks
};
// More vectors than the threads of a block, and a rest.
const Case kLarge[] = {{2, 4096, true, Limit::kClip, true, true, true},
                       {1, 9001, false, Limit::kClip, true, true, false},
                       {2, 4100, true, Limit::kThreshold, false, true, true, 0.7}};

int failures = 0;

template <class T>
constexpr DType kDType = std::is_same_v<T, double>   ? DType::kFloat64
                         : std::is_same_v<T, float>  ? DType::kFloat32
                         : std::is_same_v<T, __half> ? DType::kFloat16
                                                     : DType::kBFloat16;

// Values that every dtype holds.
template <class T>
void draw(Array<T>& array) {
  std::normal_distribution<float> normal(0, 1);
  for (size_t i = 0; i < array.size; ++i) array[i] = T(float(__nv_bfloat16(normal(generator))));
}

// Every output of a step and its backward, as fp64, one after another; empty if the emulation complained.
template <class T>
std::vector<double> run(const Case& k) {
  generator.seed(1);
  const int64_t count = k.samples * k.size, doubled = count * (k.guided ? 2 : 1), rows = 4;
  Array<float> table(rows * kColumns), value(k.each ? k.samples : 1);
  Array<int64_t> row_of(k.each ? k.samples : 1), seed(2);
  Array<T> x(count), m(doubled), h(count), n(count), g_prev(count), g_x0(count);
  Array<T> prev(count), x_0(count), g_x(count), g_m(doubled), g_h(count), g_n(count);
  table.random();
  for (size_t i = 0; i < row_of.size; ++i) row_of[i] = static_cast<int64_t>(i) % rows;
  seed[0] = 5, seed[1] = int64_t{1} << 40;
  draw(x), draw(m), draw(h), draw(n), draw(g_prev), draw(g_x0);
  const TableRows where{table.data, rows, row_of.data, k.each, 0};
  const DiffusionStep a{kDType<T>,
                        k.samples,
                        k.size,
                        where,
                        x.data,
                        m.data,
                        k.history ? h.data : nullptr,
                        k.made ? nullptr : n.data,
                        k.made ? seed.data : nullptr,
                        k.guided,
                        k.limit,
                        2.5,
                        k.rescale,
                        1.25,
                        0.9,
                        prev.data,
                        x_0.data,
                        value.data};
  emulated_diffusion_step(&a);
  const bool clip = k.limit == Limit::kClip;
  const DiffusionStepBackward b{kDType<T>, k.samples, k.size,   where,   g_prev.data, g_x0.data,
                                x.data,    m.data,    k.guided, clip,    2.5,         1.25,
                                g_x.data,  g_m.data,  g_h.data, g_n.data};
  emulated_diffusion_step_backward(&b);
  const NormalNoise c{kDType<T>, count, seed.data, n.data};
  emulated_normal_noise(&c);
  if (const char* error = emulation_take_error()) {
    printf("FAIL emulator %s\n", error);
    ++failures;
    return {};
  }
  std::vector<double> all;
  auto add = [&](auto& array) {
    for (size_t i = 0; i < array.size; ++i) all.push_back(double(fd::Compute<T>(array[i])));
  };
  add(prev), add(x_0), add(g_x), add(g_m), add(g_h), add(g_n), add(n);
  for (size_t i = 0; i < value.size; ++i) all.push_back(value[i]);
  return all;
}

template <class T>
void check(const Case& k, const std::vector<double>& truth, double tolerance) {
  const std::vector<double> got = run<T>(k);
  for (size_t i = 0; i < got.size() && i < truth.size(); ++i) {
    if (std::fabs(got[i] - truth[i]) <= tolerance * (1 + std::fabs(truth[i]))) continue;
    printf("FAIL %s size %d [%zu] = %g, expected %g\n", got[i] != got[i] ? "poison" : "wrong", int(k.size), i,
           got[i], truth[i]);
    ++failures;
    return;
  }
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
  auto every = [&](const Case& k) {
    const std::vector<double> truth = run<double>(k);
    if (wanted("fp32")) check<float>(k, truth, 2e-5);
    if (wanted("fp16")) check<__half>(k, truth, 4e-3);
    if (wanted("bf16")) check<__nv_bfloat16>(k, truth, 3e-2);
  };
  for (const Case& k : kSmall) every(k);
  if (large)
    for (const Case& k : kLarge) every(k);
  if (!failures) puts("ok");
  return failures != 0;
}
