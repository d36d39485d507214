// The Winograd kernels against plain loops in double: shapes, memory formats, dtypes, NaN, infinity, threads.
// The argument is the number of random cases. Run it for each FASTDL_CPU_ISA, and built with
// -fsanitize=address,undefined and with -fsanitize=thread.
// links ops/conv_relu_maxpool/winograd_cpu.cpp
// links ops/conv_relu_maxpool/winograd_plan.cpp
// links ops/conv_relu_maxpool/winograd_weight.cpp
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
#include "ops/conv_relu_maxpool/winograd_plan.h"

using namespace fastdl;
using namespace fastdl::cpu;

#include "winograd_case.h"

namespace {

enum class Fill { kRandom, kZeroInput, kOneNotFinite, kWeightNotFinite, kHuge };

struct Inputs {
  Tensor x, weight, bias;
  Inputs(const Case& c, Fill fill, std::mt19937& random)
      : x(c.dtype, c.N, c.C, c.H, c.W, c.in),
        weight(c.dtype, c.K, c.C, 3, 3, Format::kContiguous),
        bias(c.dtype, 1, 1, 1, c.K, Format::kContiguous) {
    std::normal_distribution<float> normal;
    const float scale = 1 / std::sqrt(9.f * static_cast<float>(c.C > 0 ? c.C : 1));
    const float size = fill == Fill::kHuge ? 3e37f : fill == Fill::kZeroInput ? 0.f : 1.f;
    x.fill([&](auto...) { return normal(random) * size; });
    weight.fill([&](auto...) { return normal(random) * scale; });
    bias.fill([&](auto...) { return fill == Fill::kZeroInput ? 1.f : 0.3f * normal(random); });
    const float odd[] = {NAN, INFINITY, -INFINITY};
    Tensor* spoiled = fill == Fill::kOneNotFinite ? &x : fill == Fill::kWeightNotFinite ? &weight : nullptr;
    if (spoiled && spoiled->count() > 0) {
      for (float value : odd) {
        int64_t at[4];
        for (int i = 0; i < 4; ++i)
          at[i] = static_cast<int64_t>(random() % static_cast<uint64_t>(spoiled->sizes[i]));
        spoiled->set(at[0], at[1], at[2], at[3], value);
      }
    }
  }
};

struct Outputs {
  Tensor output, record;
};

Outputs forward(const Case& c, const Inputs& in, bool bias, bool save) {
  Outputs out = {Tensor(c.dtype, c.N, c.K, c.OH(), c.OW(), c.out),
                 Tensor(c.dtype, c.N, c.K, c.OH(), c.OW(), c.out)};
  ConvReluMaxpoolForward args = {};
  args.conv = c.conv();
  args.pool = c.pooling();
  args.dtype = c.dtype;
  args.x = in.x.data();
  std::memcpy(args.x_strides, in.x.strides, sizeof(args.x_strides));
  args.weight = in.weight.data();
  args.bias = bias ? in.bias.data() : nullptr;
  args.output = out.output.data();
  std::memcpy(args.output_strides, out.output.strides, sizeof(args.output_strides));
  args.record = save && c.pool ? out.record.data() : nullptr;
  winograd_forward(args, kPool);
  return out;
}

void check_forward(const Case& c, Fill fill, bool bias, bool save, std::mt19937& random) {
  const Inputs in(c, fill, random);
  num_threads = 1;
  const Outputs out = forward(c, in, bias, save);
  for (int64_t threads : {2, 4}) {
    num_threads = threads;
    const Outputs again = forward(c, in, bias, save);
    expect(again.output.bytes == out.output.bytes && again.record.bytes == out.record.bytes, c,
           "threads change bits");
  }
  expect(out.output.guards_hold() && out.record.guards_hold(), c, "wrote outside");
  if (c.N * c.K * c.OH() * c.OW() == 0) return;

  const std::vector<double> conv = convolve(c, in.x, in.weight);
  double square = 0;
  for (double v : conv) square += std::isfinite(v) ? v * v : 0;
  const double near =
      3e-5 * std::sqrt(square / static_cast<double>(conv.size()));  // of a tie, or of the ReLU's edge
  Comparison outputs(c.dtype);
  int64_t bad_records = 0;
  const int64_t step = c.pool ? 2 : 1;
  for (int64_t n = 0; n < c.N; ++n)
    for (int64_t k = 0; k < c.K; ++k)
      for (int64_t y = 0; y < c.OH(); ++y)
        for (int64_t z = 0; z < c.OW(); ++z) {
          double values[4], best = -INFINITY;
          int at = 0;
          for (int q = 0; q < step * step; ++q) {
            const int64_t row = step * y + q / 2, col = step * z + q % 2;
            const bool inside = row < c.CH() && col < c.CW();
            values[q] =
                inside ? conv[static_cast<size_t>(((n * c.K + k) * c.CH() + row) * c.CW() + col)] : -INFINITY;
            if (q == 0 || values[q] > best || std::isnan(values[q])) best = values[q], at = q;
          }
          const double sum = best + (bias ? in.bias.get(0, 0, 0, k) : 0);
          outputs.add(out.output.get(n, k, y, z), sum <= 0 ? 0 : sum);
          if (!c.pool || !save) continue;
          const int record = out.record.data()[out.record.offset(n, k, y, z)];
          const bool right = std::isnan(sum) ? record == at
                             : record == 255 ? sum <= near
                             : record > 3    ? false
                             : fill == Fill::kZeroInput
                                 ? record == at
                                 : sum >= -near && (values[record] == best || values[record] >= best - near);
          bad_records += !right;
        }
  outputs.check(c, "output");
  expect(bad_records == 0, c, "records", static_cast<double>(bad_records));
}

struct Gradients {
  Tensor input, weight, bias;
};

// wants: bit 0 grad_input, bit 1 grad_weight, bit 2 grad_bias
Gradients backward(const Case& c, const Inputs& in, const Tensor& grad_output, const Tensor& saved,
                   int wants) {
  Gradients out = {Tensor(c.dtype, c.N, c.C, c.H, c.W, c.in),
                   Tensor(c.dtype, c.K, c.C, 3, 3, Format::kContiguous),
                   Tensor(c.dtype, 1, 1, 1, c.K, Format::kContiguous)};
  ConvReluMaxpoolBackward args = {};
  args.conv = c.conv();
  args.pool = c.pooling();
  args.dtype = c.dtype;
  args.grad_output = grad_output.data();
  std::memcpy(args.grad_output_strides, grad_output.strides, sizeof(args.grad_output_strides));
  args.record = c.pool ? saved.data() : nullptr;
  args.output = c.pool ? nullptr : saved.data();
  args.x = in.x.data();
  std::memcpy(args.x_strides, in.x.strides, sizeof(args.x_strides));
  args.weight = in.weight.data();
  args.grad_input = wants & 1 ? out.input.data() : nullptr;
  args.grad_weight = wants & 2 ? out.weight.data() : nullptr;
  args.grad_bias = wants & 4 ? out.bias.data() : nullptr;
  winograd_backward(args, kPool);
  return out;
}

// The gradient of the convolution's output [N][K][CH][CW] in double
std::vector<double> expand(const Case& c, const Tensor& grad_output, const Tensor& saved) {
  std::vector<double> grad(static_cast<size_t>(c.N * c.K * c.CH() * c.CW()));
  for (int64_t n = 0; n < c.N; ++n)
    for (int64_t k = 0; k < c.K; ++k)
      for (int64_t y = 0; y < c.OH(); ++y)
        for (int64_t z = 0; z < c.OW(); ++z) {
          const int record = saved.data()[saved.offset(n, k, y, z)];
          if (c.pool ? record == 255 : saved.get(n, k, y, z) <= 0) continue;
          const int64_t row = c.pool ? 2 * y + record / 2 : y, col = c.pool ? 2 * z + record % 2 : z;
          grad[static_cast<size_t>(((n * c.K + k) * c.CH() + row) * c.CW() + col)] =
              grad_output.get(n, k, y, z);
        }
  return grad;
}

void check_backward(const Case& c, Fill fill, int wants, std::mt19937& random) {
  const Inputs in(c, fill, random);
  Tensor grad_output(c.dtype, c.N, c.K, c.OH(), c.OW(), c.out),
      saved(c.dtype, c.N, c.K, c.OH(), c.OW(), c.out);
  std::normal_distribution<float> normal;
  grad_output.fill([&](auto...) { return normal(random); });
  saved.fill([&](auto...) { return normal(random); });
  if (c.pool)
    for (int64_t n = 0; n < c.N; ++n)
      for (int64_t k = 0; k < c.K; ++k)
        for (int64_t y = 0; y < c.OH(); ++y)
          for (int64_t z = 0; z < c.OW(); ++z) {
            const int64_t i = 2 * y + 1 < c.CH() ? static_cast<int64_t>(random() % 2) : 0;
            const int64_t j = 2 * z + 1 < c.CW() ? static_cast<int64_t>(random() % 2) : 0;
            saved.data()[saved.offset(n, k, y, z)] =
                random() % 3 ? static_cast<uint8_t>(2 * i + j) : kReluClosed;
          }
  if (fill == Fill::kOneNotFinite && grad_output.count() > 0)
    grad_output.set(0, c.K - 1, c.OH() / 2, c.OW() / 2, NAN);

  num_threads = 1;
  const Gradients out = backward(c, in, grad_output, saved, wants);
  for (int64_t threads : {2, 4}) {
    num_threads = threads;
    const Gradients again = backward(c, in, grad_output, saved, wants);
    expect(again.input.bytes == out.input.bytes && again.weight.bytes == out.weight.bytes &&
               again.bias.bytes == out.bias.bytes,
           c, "backward: threads change bits");
  }
  expect(out.input.guards_hold() && out.weight.guards_hold() && out.bias.guards_hold(), c,
         "backward: wrote outside");

  const std::vector<double> grad = expand(c, grad_output, saved);
  std::vector<double> input(static_cast<size_t>(c.N * c.C * c.H * c.W)),
      weight(static_cast<size_t>(c.K * c.C * 9)), bias(static_cast<size_t>(c.K));
  size_t at = 0;
  for (int64_t n = 0; n < c.N; ++n)
    for (int64_t k = 0; k < c.K; ++k)
      for (int64_t y = 0; y < c.CH(); ++y)
        for (int64_t z = 0; z < c.CW(); ++z, ++at) {
          bias[static_cast<size_t>(k)] += grad[at];
          for (int64_t tap = 0; tap < 9; ++tap) {
            const int64_t row = y + tap / 3 - c.pad_h, col = z + tap % 3 - c.pad_w;
            if (row < 0 || row >= c.H || col < 0 || col >= c.W) continue;
            for (int64_t ch = 0; ch < c.C; ++ch) {
              input[static_cast<size_t>(((n * c.C + ch) * c.H + row) * c.W + col)] +=
                  grad[at] * in.weight.get(k, ch, tap / 3, tap % 3);
              weight[static_cast<size_t>((k * c.C + ch) * 9 + tap)] += grad[at] * in.x.get(n, ch, row, col);
            }
          }
        }
  Comparison inputs(c.dtype), weights(c.dtype), biases(c.dtype);
  at = 0;
  for (int64_t n = 0; n < c.N; ++n)
    for (int64_t ch = 0; ch < c.C; ++ch)
      for (int64_t y = 0; y < c.H; ++y)
        for (int64_t z = 0; z < c.W; ++z) inputs.add(out.input.get(n, ch, y, z), input[at++]);
  at = 0;
  for (int64_t k = 0; k < c.K; ++k) {
    biases.add(out.bias.get(0, 0, 0, k), bias[static_cast<size_t>(k)]);
    for (int64_t ch = 0; ch < c.C; ++ch)
      for (int64_t tap = 0; tap < 9; ++tap)
        weights.add(out.weight.get(k, ch, tap / 3, tap % 3), weight[at++]);
  }
  if (wants & 1) inputs.check(c, "grad_input");
  if (wants & 2) weights.check(c, "grad_weight");
  if (wants & 4) biases.check(c, "grad_bias");
}

int64_t tile_of(const Case& c) {
  return winograd_tile({c.N, c.C, c.H, c.W, c.K, c.CH(), c.CW(), {c.pad_h, c.pad_w}});
}

// The packed weight of the call before must not outlive an edit in place, nor serve other tiles.
void check_kept_weight(std::mt19937& random) {
  const Case c = {
      1, 20, 16, 16, 24, 1, 1, true, false, DType::kFloat32, Format::kContiguous, Format::kContiguous};
  Case part = c;
  part.H = part.W = 12;
  expect(tile_of(c) == 4 && tile_of(part) == 6, c, "tiles of both sizes");
  Inputs in(c, Fill::kRandom, random);
  num_threads = 1;
  for (int i = 0; i < 4; ++i) {
    for (const Case& image : {c, part}) {
      const Outputs kept = forward(image, in, true, false), anew = forward(image, in, true, true);
      expect(kept.output.bytes == anew.output.bytes, image, "the weight of another call");
    }
    in.weight.set(c.K - 1, c.C - 1, 2, 2 - i % 3, 5.f + static_cast<float>(i));
  }
}

Case random_case(std::mt19937& random, int64_t largest) {
  const auto up_to = [&](int64_t n) { return 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  Case c;
  c.pad_h = up_to(4) - 1;
  c.pad_w = random() % 4 ? c.pad_h : up_to(4) - 1;
  c.N = up_to(3);
  c.C = random() % 8 ? up_to(largest) : up_to(4);
  c.K = random() % 8 ? up_to(largest) : up_to(4);
  c.pool = random() % 3;
  c.ceil_mode = c.pool && random() % 2;
  const int64_t least = c.pool && !c.ceil_mode ? 4 : 3;
  c.H = std::max<int64_t>(up_to(26), std::max<int64_t>(1, least - 2 * c.pad_h));
  c.W = std::max<int64_t>(up_to(30), std::max<int64_t>(1, least - 2 * c.pad_w));
  c.dtype = random() % 2 ? DType::kFloat32 : random() % 2 ? DType::kFloat16 : DType::kBFloat16;
  c.in = static_cast<Format>(random() % 3);
  c.out = static_cast<Format>(random() % 2);
  return c;
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 100;
  std::mt19937 random(20261123);
  const Fill fills[] = {Fill::kRandom, Fill::kRandom, Fill::kZeroInput, Fill::kOneNotFinite,
                        Fill::kWeightNotFinite};
  bool drawn[2] = {};
  for (int i = 0; i < cases; ++i) {
    const Case c = random_case(random, i % 10 == 0 ? 150 : 40);
    drawn[tile_of(c) == 6] = true;
    check_forward(c, fills[random() % 5], random() % 4 != 0, random() % 2 != 0, random);
    check_backward(c, fills[random() % 5], random() % 2 ? 7 : static_cast<int>(random() % 8), random);
  }
  if (cases > 10 && !(drawn[0] && drawn[1])) {
    std::printf("FAILED: tiles of both sizes among the random cases\n");
    ++failures;
  }
  const auto check = [&](const Case& c, Fill fill) {
    check_forward(c, fill, true, true, random);
    check_backward(c, fill, 7, random);
  };
  const Format contiguous = Format::kContiguous, last = Format::kChannelsLast;
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    check({0, 8, 9, 9, 16, 1, 1, true, false, dtype, contiguous, contiguous}, Fill::kRandom);
    check({3, 32, 4, 4, 64, 1, 1, true, false, dtype, last, last}, Fill::kRandom);
    check({40, 5, 6, 6, 33, 1, 1, true, true, dtype, contiguous, last}, Fill::kRandom);
    check({1, 16, 40, 140, 16, 1, 1, false, false, dtype, contiguous, contiguous}, Fill::kRandom);
    check({2, 0, 9, 9, 16, 1, 1, true, false, dtype, contiguous, contiguous}, Fill::kRandom);
  }
  const DType fp32 = DType::kFloat32;
  check({1, 512, 10, 10, 20, 1, 1, true, false, fp32, contiguous, contiguous}, Fill::kRandom);
  // Both sizes of tiles, whole and cut, with every padding: grad_input's are 2 to -1.
  for (int64_t padding = 0; padding < 4; ++padding)
    for (int64_t side : {12, 16, 17, 18})
      for (Fill fill : {Fill::kRandom, Fill::kOneNotFinite, Fill::kWeightNotFinite}) {
        const int64_t H = side + 2 - 2 * padding, W = H - 1;
        check({2, 9, H, W, 17, padding, padding, true, true, fp32, contiguous, last}, fill);
        check({2, 9, H, W, 17, padding, padding, padding % 2 == 0, false, fp32, last, contiguous}, fill);
      }
  check({1, 96, 11, 11, 96, 1, 1, true, true, fp32, contiguous, contiguous}, Fill::kRandom);
  check({1, 97, 11, 11, 97, 1, 1, true, true, fp32, contiguous, contiguous}, Fill::kRandom);
  // Sums near the end of fp32: Winograd overflows where the plain sum does not.
  for (int64_t side : {12, 16})
    check_forward({1, 3, side, side, 20, 1, 1, false, false, fp32, contiguous, contiguous}, Fill::kHuge, true,
                  false, random);
  check_kept_weight(random);
  const char* isas[] = {"baseline", "avx2", "avx512", "avx512bf16", "amx"};
  std::printf("winograd on %s: %s\n", isas[static_cast<int>(current_isa())], failures ? "FAILED" : "passed");
  return failures != 0;
}
