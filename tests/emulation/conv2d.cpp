// Runs the CUDA pass of conv2d on random images in every dtype against a plain loop. Arguments: --schedule N,
// --large 1, --dtype fp64|fp32|fp16|bf16. Exit status 1 if a case fails.
#include "emulation/ops/conv2d.cpp"

#include <cmath>

#include "checked_memory.h"

namespace {

struct Case {
  int64_t N, C, plane;
  bool channels_last, scaled, residual;
  int skew;  // elements that the residual lies off 16 bytes
};
// Vectors along planes and along channels, single values, planes of one position, an unaligned residual.
const Case kSmall[] = {{2, 5, 16, false, true, true, 0}, {3, 8, 7, true, true, true, 0},
                       {2, 3, 7, false, false, true, 0}, {1, 6, 5, true, true, false, 0},
                       {2, 16, 1, false, true, true, 0}, {1, 4, 16, false, false, true, 1},
                       {2, 8, 4, true, false, true, 1}};
const Case kLarge[] = {{2, 37, 112, false, true, true, 0}, {2, 64, 49, true, true, true, 0}};

int failures = 0;

void complain(const char* what, const char* why, const Case& c) {
  printf("FAIL %s %s N %lld C %lld plane %lld\n", why, what, static_cast<long long>(c.N),
         static_cast<long long>(c.C), static_cast<long long>(c.plane));
  ++failures;
}

template <class T>
void run(const Case& c, DType dtype, double tolerance) {
  generator.seed(1);
  const int64_t count = c.N * c.C * c.plane;
  Array<T> y(count), bias(c.C), scale(c.C), residual(count + c.skew), before(count);
  y.random(), bias.random(), scale.random(), residual.random();
  y[1] = T(NAN), y[2] = T(-INFINITY);
  for (int64_t i = 0; i < count; ++i) before[i] = y[i];
  const T* added = c.residual ? residual.data + c.skew : nullptr;
  const Conv2dEpilogue args{c.N,
                            c.C,
                            c.plane,
                            dtype,
                            c.channels_last,
                            y.data,
                            c.scaled ? bias.data : nullptr,
                            c.scaled ? scale.data : nullptr,
                            added,
                            Activation::kRelu};
  if (emulated_conv2d_epilogue(&args)) complain("launch", "status", c);
  if (const char* error = emulation_take_error()) complain(error, "emulator", c);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t channel = c.channels_last ? i % c.C : i / c.plane % c.C;
    double v = double(before[i]) * (c.scaled ? double(scale[channel]) : 1);
    double size = 1 + (std::isfinite(v) ? std::fabs(v) : 0);
    if (c.scaled) v += double(bias[channel]), size += std::fabs(double(bias[channel]));
    if (added) v += double(added[i]), size += std::fabs(double(added[i]));
    if (v <= 0) v = 0;
    const double found = double(y[i]);
    if (v != v ? found != found : found == v || std::fabs(found - v) <= tolerance * size) continue;
    return complain("values", "wrong", c);
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
  auto each = [&](const Case& c) {
    if (wanted("fp64")) run<double>(c, DType::kFloat64, 1e-14);
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
