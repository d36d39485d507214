// tanh, sigmoid, normal_tail and the powers of math-inl.h against double: every 97th float (more with a
// larger argument), and the special values. The limits are what was measured, in units of the last place,
// rounded up. Exits 1 on failure.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <vector>

#include "kernel_test.h"

#define FASTDL_ISA_SOURCE "math_table-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AVX512
#include "common/cpu/foreach_isa.h"

namespace {

struct Function {
  const char* name;
  double (*truth)(double);
  double ulps;
};
const Function kFunctions[] = {
    {"tanh", std::tanh, 1.4},
    {"sigmoid",
     [](double x) { return x < -87 ? 0
                           : x < 0 ? std::exp(x) / (1 + std::exp(x))
                                   : 1 / (1 + std::exp(-x)); },
     2.4},
    {"normal_tail", nullptr, 0},
    {"exp_or_zero", [](double x) { return x < -87 ? 0 : std::exp(x > 88 ? 88 : x); }, 1.1},
    {"exp2_or_zero", [](double x) { return x < -126.5 ? 0 : std::exp2(x > 127 ? 127 : x); }, 1.2},
};

int failures = 0;

// The error in units of the last place of the float nearest to the truth; denormals have the least normal's.
double ulps(float got, double truth) {
  const float nearest = static_cast<float>(truth);
  if (std::isnan(truth) || std::isinf(nearest)) {
    const bool same = std::isnan(truth) ? std::isnan(got) : got == nearest;
    return same ? 0 : std::numeric_limits<double>::infinity();
  }
  int exponent;
  std::frexp(std::fmax(std::fabs(truth), 0x1p-126), &exponent);
  return std::fabs(got - truth) / std::ldexp(1.0, exponent - 24);
}

// Of its arguments, which are not negative: relative errors, larger ones of smaller chances.
void check_normal_tail(int which) {
  constexpr double kLimits[][2] = {{1, 2.7e-7}, {2, 8.5e-7}, {4, 5e-6}, {6, 3.2e-5}, {7, 6e-5}};
  std::vector<float> a = {0, NAN, std::numeric_limits<float>::infinity(), 3.4e38f, 14, 8, 0x1p-149f};
  for (int i = 0; i < 70000; ++i) a.push_back(static_cast<float>(i) * 1e-4f);
  std::vector<float> chance(a.size());
  FASTDL_ISA_SELECT(kFunctions)[which](a.data(), chance.data(), static_cast<int64_t>(a.size()));
  for (size_t i = 0; i < a.size(); ++i) {
    const double truth = 0.5 * std::erfc(a[i] * std::sqrt(0.5)), got = chance[i];
    bool right = std::isnan(truth) ? std::isnan(got) : got >= 0 && got < 2e-12 && (a[i] < 14 || got == 0);
    for (const auto& [most, error] : kLimits)
      if (a[i] < most) {
        right = std::fabs(got - truth) <= error * truth;
        break;
      }
    if (!right && ++failures <= 20)
      std::printf("normal_tail(%.9g) is %.9g, expected %.9g\n", a[i], got, truth);
  }
}

void check(int which, const std::vector<float>& x, double* largest) {
  const Function& f = kFunctions[which];
  fastdl::test::Guarded<float> in(static_cast<int64_t>(x.size())), out(static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) in[static_cast<int64_t>(i)] = x[i];
  FASTDL_ISA_SELECT(kFunctions)[which](in.data(), out.data(), in.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const float got = out[static_cast<int64_t>(i)];
    const double error = ulps(got, f.truth(x[i]));
    if (error > *largest) *largest = error;
    if (!(error <= f.ulps) && ++failures <= 20)
      std::printf("%s(%.9g) is %.9g, expected %.17g: %.2f ulp\n", f.name, x[i], got, f.truth(x[i]), error);
  }
}

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace

int main(int argc, char** argv) {
  const uint32_t cases = argc > 1 ? static_cast<uint32_t>(std::atoi(argv[1])) : 200;
  const uint32_t step = 19400 / cases | 1;
  const float infinity = std::numeric_limits<float>::infinity();
  for (int which = 0; which < static_cast<int>(std::size(kFunctions)); ++which) {
    if (kFunctions[which].truth == nullptr) {
      check_normal_tail(which);
      continue;
    }
    double largest = 0;
    check(which,
          {0.0f, -0.0f, infinity, -infinity, NAN, -NAN, 0x1p-149f, -0x1p-149f, 0x1p-127f, 3.4e38f, -3.4e38f,
           88.72283f, 88.72284f, -87.336f, -103.97f, -103.98f, -104.1f},
          &largest);
    std::vector<float> x;
    for (uint64_t bits = 0; bits < 0x100000000; bits += step) {
      const float value = from_bits(static_cast<uint32_t>(bits));
      // Where something happens; beyond, the special values have been seen.
      if (std::fabs(value) <= 110 && std::fabs(value) > 0x1p-40f) x.push_back(value);
      if (x.size() == 4099 || (bits + step >= 0x100000000 && !x.empty())) {
        check(which, x, &largest);
        x.clear();
      }
    }
    // An odd function keeps the sign of zero.
    if (which == 0) {
      float zero[1] = {-0.0f}, out[1];
      FASTDL_ISA_SELECT(kFunctions)[which](zero, out, 1);
      if (!std::signbit(out[0]) && ++failures) std::printf("%s(-0) is +0\n", kFunctions[which].name);
    }
    std::printf("%s: at most %.3f ulp\n", kFunctions[which].name, largest);
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
