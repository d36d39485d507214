// The cases of winograd_test.cpp: tensors in any layout and dtype, and the comparison with plain loops.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/cpu/isa.h"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_cpu.h"
using namespace fastdl;
using namespace fastdl::cpu;

namespace {

int64_t num_threads = 1;
int failures = 0;

void run_threads(int64_t workers, void (*body)(void*, int64_t), void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < workers; ++i) threads.emplace_back(body, context, i);
  body(context, 0);
  for (std::thread& thread : threads) thread.join();
}
constexpr ThreadPool kPool = {run_threads, [] { return num_threads; }};

enum class Format { kContiguous, kChannelsLast, kPadded };  // kPadded: contiguous rows inside a larger tensor

float half_to_float(uint16_t h) {
  const int exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
  const float magnitude = exponent == 31  ? (mantissa ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                          : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

// Round to nearest even by search: slow and plain.
uint16_t float_to_half(float f) {
  if (std::isnan(f)) return 0x7e00;
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  const double a = std::fabs(static_cast<double>(f));
  if (a >= 65520) return sign | 0x7c00;
  int low = 0, high = 0x7c00;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (half_to_float(static_cast<uint16_t>(middle)) <= a ? low : high) = middle;
  }
  const double below = half_to_float(static_cast<uint16_t>(low));
  const double above = high == 0x7c00 ? 65536 : half_to_float(static_cast<uint16_t>(high));
  const bool up = a - below > above - a || (a - below == above - a && (low & 1));
  return static_cast<uint16_t>(sign | (up ? high : low));
}

// [n, c, h, w] with guard bytes on both sides
struct Tensor {
  static constexpr int64_t kGuard = 64;
  DType dtype;
  int64_t sizes[4], strides[4];
  std::vector<uint8_t> bytes;

  Tensor(DType type, int64_t n, int64_t c, int64_t h, int64_t w, Format format)
      : dtype(type), sizes{n, c, h, w} {
    const int64_t pad_h = format == Format::kPadded ? 1 : 0, pad_w = format == Format::kPadded ? 3 : 0;
    if (format == Format::kChannelsLast) {
      const int64_t s[4] = {h * w * c, 1, w * c, c};
      std::memcpy(strides, s, sizeof(s));
    } else {
      const int64_t s[4] = {c * (h + pad_h) * (w + pad_w), (h + pad_h) * (w + pad_w), w + pad_w, 1};
      std::memcpy(strides, s, sizeof(s));
    }
    bytes.assign(static_cast<size_t>(n * c * (h + pad_h) * (w + pad_w) * element()) + 2 * kGuard, 0xff);
  }
  int64_t element() const { return dtype == DType::kFloat32 ? 4 : 2; }
  int64_t count() const { return sizes[0] * sizes[1] * sizes[2] * sizes[3]; }
  uint8_t* data() { return bytes.data() + kGuard; }
  const uint8_t* data() const { return bytes.data() + kGuard; }
  int64_t offset(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return n * strides[0] + c * strides[1] + h * strides[2] + w * strides[3];
  }
  double get(int64_t n, int64_t c, int64_t h, int64_t w) const {
    const uint8_t* p = data() + offset(n, c, h, w) * element();
    uint16_t half;
    std::memcpy(&half, p, 2);
    if (dtype == DType::kFloat16) return half_to_float(half);
    uint32_t bits = static_cast<uint32_t>(half) << 16;
    if (dtype == DType::kFloat32) std::memcpy(&bits, p, 4);
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
  }
  void set(int64_t n, int64_t c, int64_t h, int64_t w, float f) {
    uint8_t* p = data() + offset(n, c, h, w) * element();
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    const uint16_t half = dtype == DType::kFloat16 ? float_to_half(f)
                          : std::isnan(f) ? 0x7fc0
                                          : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    if (dtype == DType::kFloat32)
      std::memcpy(p, &bits, 4);
    else
      std::memcpy(p, &half, 2);
  }
  template <class F>
  void fill(const F& f) {
    for (int64_t n = 0; n < sizes[0]; ++n)
      for (int64_t c = 0; c < sizes[1]; ++c)
        for (int64_t h = 0; h < sizes[2]; ++h)
          for (int64_t w = 0; w < sizes[3]; ++w) set(n, c, h, w, static_cast<float>(f(n, c, h, w)));
  }
  bool guards_hold() const {
    for (int64_t i = 0; i < kGuard; ++i)
      if (bytes[i] != 0xff || bytes[bytes.size() - 1 - i] != 0xff) return false;
    return true;
  }
};

struct Case {
  int64_t N, C, H, W, K, pad_h, pad_w;
  bool pool, ceil_mode;
  DType dtype;
  Format in, out;
  std::string name() const {
    const char* dtypes[] = {"fp64", "fp32", "fp16", "bf16"};
    char text[160];
    std::snprintf(text, sizeof(text), "N%ld C%ld H%ld W%ld K%ld p%ld,%ld %s%s %s in %d out %d",
                  static_cast<long>(N), static_cast<long>(C), static_cast<long>(H), static_cast<long>(W),
                  static_cast<long>(K), static_cast<long>(pad_h), static_cast<long>(pad_w),
                  pool ? "pool" : "relu", ceil_mode ? " ceil" : "", dtypes[static_cast<int>(dtype)],
                  static_cast<int>(in), static_cast<int>(out));
    return text;
  }
  int64_t CH() const { return H + 2 * pad_h - 2; }
  int64_t CW() const { return W + 2 * pad_w - 2; }
  int64_t pooled(int64_t size) const { return !pool ? size : ceil_mode ? (size + 1) / 2 : size / 2; }
  int64_t OH() const { return pooled(CH()); }
  int64_t OW() const { return pooled(CW()); }
  ConvGeometry conv() const { return {N, C, H, W, K, 3, 3, 1, {1, 1}, {pad_h, pad_w}, {1, 1}, CH(), CW()}; }
  PoolGeometry pooling() const { return {pool, {2, 2}, {2, 2}, {0, 0}, {1, 1}, OH(), OW()}; }
};

void expect(bool ok, const Case& c, const char* what, double value = 0) {
  if (ok) return;
  ++failures;
  std::printf("FAILED %s: %s (%g)\n", c.name().c_str(), what, value);
}

// Relative L2 error of what is finite; where the reference is not, the same NaN or infinity is demanded.
struct Comparison {
  double error = 0, norm = 0;
  int64_t wrong = 0;
  double epsilon;  // of the storage type, spent on rounding the result
  explicit Comparison(DType dtype)
      : epsilon(dtype == DType::kFloat32   ? 0
                : dtype == DType::kFloat16 ? 0.0005
                                           : 0.004) {}
  void add(double ours, double ref) {
    if (std::isfinite(ref)) {
      error += (ours - ref) * (ours - ref);
      norm += ref * ref;
      if (!std::isfinite(ours)) ++wrong;
    } else if (std::isnan(ref) ? !std::isnan(ours) : ours != ref) {
      ++wrong;
    }
  }
  double relative() const { return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error); }
  void check(const Case& c, const char* what) const {
    expect(wrong == 0, c, (std::string(what) + ": not finite at other places").c_str(),
           static_cast<double>(wrong));
    expect(wrong > 0 || relative() <= 1e-5 + epsilon, c, (std::string(what) + ": relative L2 error").c_str(),
           relative());
  }
};

// conv [N][K][CH][CW] in double; taps in the padding are skipped
std::vector<double> convolve(const Case& c, const Tensor& x, const Tensor& w) {
  std::vector<double> conv(static_cast<size_t>(c.N * c.K * c.CH() * c.CW()));
  size_t at = 0;
  for (int64_t n = 0; n < c.N; ++n)
    for (int64_t k = 0; k < c.K; ++k)
      for (int64_t y = 0; y < c.CH(); ++y)
        for (int64_t z = 0; z < c.CW(); ++z, ++at)
          for (int64_t i = 0; i < 3; ++i)
            for (int64_t j = 0; j < 3; ++j) {
              const int64_t row = y + i - c.pad_h, col = z + j - c.pad_w;
              if (row < 0 || row >= c.H || col < 0 || col >= c.W) continue;
              for (int64_t ch = 0; ch < c.C; ++ch) conv[at] += x.get(n, ch, row, col) * w.get(k, ch, i, j);
            }
  return conv;
}

}  // namespace
