// The bf16 implicit GEMM on AMX tiles, emulated where the instruction set has none, against plain loops in
// fp64: both memory formats on either side, random geometries. FASTDL_CPU_ISA picks the instruction set.
// Exits 1 on failure.
#define FASTDL_EMULATE_TILES
#include "ops/conv_relu_maxpool/implicit_gemm_tiles_cpu.cpp"
// after it: the kernel's headers come first, as in its own build
#include "direct_case.h"

using namespace fastdl;
using namespace fastdl::test;

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? std::atoi(argv[1]) : 500;
  Random random = {1};
  if (!cpu::has_implicit_gemm_tiles()) {
    std::printf("implicit GEMM of tiles: not for this instruction set\n");
    return 0;
  }
  int64_t checked = 0;
  for (int64_t i = 0; i < cases; ++i) {
    // Small images are taken together where there are many.
    const Case c = draw(random, i % 8 == 0 ? 60 : 4, 80, 100);
    if (c.conv.CH <= 0 || c.conv.CW <= 0 || c.pool.OH <= 0 || c.pool.OW <= 0) continue;
    ++checked;
    Check<BFloat16>(c, "bf16", random, cpu::implicit_gemm_tiles_forward, nullptr).run();
  }
  std::printf("implicit GEMM of tiles: %ld geometries, %d failures\n", checked, failures);
  return failures != 0;
}
