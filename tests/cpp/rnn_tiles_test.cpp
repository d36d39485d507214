// Products of the recurrent kernels by tiles, emulated or not, of bf16 and of fp32 in three parts, against
// sums in double: every row count, ragged units and depths, several chunks of the depth, weights as they are
// and transposed. Tensors end at an unreadable page. Exits 1 on failure.
#define FASTDL_EMULATE_TILES
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "kernel_test.h"

namespace fastdl::cpu {
struct ProductCase {
  int64_t gates, units, depth, rows;
  bool transposed;
};
struct ProductSizes {
  int64_t panel_floats, packed, vectors, lanes;
};
struct ProductOf {
  bool tiles;
  ProductSizes (*product)(const ProductCase& c, const void* plain, float* panels, BFloat16* packed,
                          const float* a, float* y);
};
struct ProductTable {
  ProductOf bf16, fp32;
};
}  // namespace fastdl::cpu

#define FASTDL_ISA_SOURCE "rnn_tiles_table-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AMX
#include "common/cpu/foreach_isa.h"

using namespace fastdl;
using namespace fastdl::test;

namespace {

int failures = 0;

// S: of the weight. By tiles, rows are rounded to it.
template <class S>
void check(const cpu::ProductOf& of, const cpu::ProductCase& c, Random& random) {
  const cpu::ProductSizes sizes = of.product(c, nullptr, nullptr, nullptr, nullptr, nullptr);
  Guarded<S> plain(c.gates * c.units * c.depth);
  Guarded<float> a(c.rows * c.depth), y(c.rows * sizes.vectors * sizes.lanes);
  for (int64_t i = 0; i < plain.size(); ++i) assign(&plain[i], random.uniform());
  for (int64_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(random.uniform());
  Guarded<float> panels(sizes.panel_floats);
  Guarded<BFloat16> packed(sizes.packed);
  of.product(c, plain.data(), panels.data(), packed.data(), a.data(), y.data());
  for (int64_t row = 0; row < c.rows; ++row)
    for (int64_t v = 0; v < sizes.vectors; ++v)
      for (int64_t lane = 0; lane < sizes.lanes; ++lane) {
        const int64_t unit = v / c.gates * sizes.lanes + lane, gate = v % c.gates;
        if (unit >= c.units) continue;
        double sum = 0, most = 0;
        for (int64_t k = 0; k < c.depth; ++k) {
          const int64_t at = c.transposed ? (gate * c.units + unit) * c.depth + k : k * c.units + unit;
          S rounded;
          assign(&rounded, a[row * c.depth + k]);
          const double term = (of.tiles ? value(rounded) : value(a[row * c.depth + k])) * value(plain[at]);
          sum += term, most += std::fabs(term);
        }
        const double got = y[(row * sizes.vectors + v) * sizes.lanes + lane];
        // What fp32 leaves of sums, of tiles of 32 or of pairs; a lost part would be 2^-18.
        if (!(std::fabs(got - sum) <= (of.tiles ? 0x1p-21 : 0x1p-20) * most) && ++failures <= 20)
          std::printf(
              "gates %ld units %ld depth %ld rows %ld transposed %d: row %ld unit %ld is %g, not %g\n",
              c.gates, c.units, c.depth, c.rows, c.transposed, row, unit, got, sum);
      }
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 200;
  const cpu::ProductTable& table = FASTDL_ISA_SELECT(kProduct);
  if (!table.bf16.tiles) std::printf("no tiles without AVX2: the vectors' products\n");
  if (!table.fp32.tiles) std::printf("no tiles of fp32 with this instruction set: the vectors' products\n");
  Random random{1};
  for (int i = 0; i < cases; ++i) {
    cpu::ProductCase c = {};
    c.transposed = random.below(2) == 0, c.gates = c.transposed ? 1 + random.below(4) : 1;
    c.units = 1 + random.below(70), c.rows = 1 + random.below(80);
    c.depth = 1 + random.below(i % 4 == 0 ? 1200 : 100);
    check<BFloat16>(table.bf16, c, random);
    check<float>(table.fp32, c, random);
  }
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures != 0;
}
