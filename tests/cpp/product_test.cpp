// The product of linear against plain loops in double: every way its matrices can lie, tails, bias, threads.
// Small integers must come out exact. Tensors end at an unreadable page; 1, 2 and 5 threads are bitwise
// equal. Exits 1 on failure.
// links ops/linear/product_cpu.cpp
#include "kernel_test.h"
#include "ops/linear/linear_cpu.h"

using namespace fastdl;
using namespace fastdl::test;

namespace {

int failures = 0;

struct Case {
  int64_t M, N, K, gap;  // gap: elements between runs
  bool left_by_rows, right_by_rows, has_bias, integers;
};

// A matrix whose runs lie `gap` apart; the last one ends with the memory.
struct Matrix {
  int64_t row, column;
  Guarded<float> data;

  Matrix(int64_t rows, int64_t columns, bool by_rows, int64_t gap)
      : row(by_rows ? columns + gap : 1),
        column(by_rows ? 1 : rows + gap),
        data((rows - 1) * row + (columns - 1) * column + 1) {}
  float at(int64_t i, int64_t j) const { return data[i * row + j * column]; }
};

void fill(Guarded<float>& t, const Case& c, Random& random) {
  for (int64_t i = 0; i < t.size(); ++i)
    t[i] = c.integers ? static_cast<float>(random.below(9)) - 4
                      : static_cast<float>(random.below(2001)) / 1000 - 1;
}

void check(const Case& c, Random& random) {
  Matrix left(c.M, c.K, c.left_by_rows, c.gap), right(c.K, c.N, c.right_by_rows, c.gap);
  Guarded<float> bias(c.N), first(c.M * c.N);
  for (Guarded<float>* t : {&left.data, &right.data, &bias}) fill(*t, c, random);
  for (int64_t threads : {1, 2, 5}) {
    num_threads = threads;
    Guarded<float> output(c.M * c.N);
    LinearProduct args{c.M, c.N, c.K};
    args.left = left.data.data(), args.right = right.data.data();
    args.bias = c.has_bias ? bias.data() : nullptr;
    args.output = output.data();
    args.left_row = left.row, args.left_depth = left.column;
    args.right_depth = right.row, args.right_column = right.column;
    cpu::linear_product(args, kThreadPool);
    if (threads == 1) {
      first = std::move(output);
      continue;
    }
    if (!output.same_bytes(first) && ++failures) std::printf("%ld threads are not as one\n", threads);
  }
  for (int64_t i = 0; i < c.M; ++i)
    for (int64_t j = 0; j < c.N; ++j) {
      double sum = c.has_bias ? bias[j] : 0, magnitude = 1;
      for (int64_t k = 0; k < c.K; ++k) {
        const double term = static_cast<double>(left.at(i, k)) * right.at(k, j);
        sum += term, magnitude += std::fabs(term);
      }
      const double got = first[i * c.N + j];
      const bool same = c.integers ? got == sum : std::fabs(got - sum) <= 2e-6 * magnitude;
      if (!same && ++failures <= 20)
        std::printf("[%ld, %ld, %ld] element %ld, %ld is %.9g, expected %.9g\n", c.M, c.N, c.K, i, j, got,
                    sum);
    }
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 200;
  Random random{1};
  for (int i = 0; i < cases; ++i) {
    const auto size = [&](int64_t most) { return 1 + random.below(random.below(3) == 0 ? most : 40); };
    Case c{size(230), size(300), size(600), random.below(3)};
    if (i % 40 == 0) c.N = 1000 + random.below(100);
    if (i % 40 == 5) c.M = 600 + random.below(100), c.N = 1750 + random.below(50), c.K += 63;  // by tiles
    c.left_by_rows = random.below(2) == 0, c.right_by_rows = random.below(2) == 0;
    c.has_bias = random.below(2) == 0, c.integers = random.below(2) == 0;
    check(c, random);
  }
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures != 0;
}
