// direct_forward, and in fp32 implicit_gemm_forward, against plain loops in fp64: dtypes, both memory formats
// on either side, random geometries. FASTDL_CPU_ISA picks the instruction set. Exits 1 on failure.
// links ops/conv_relu_maxpool/direct_cpu.cpp
// links ops/conv_relu_maxpool/implicit_gemm_cpu.cpp
#include "direct_case.h"

using namespace fastdl;
using namespace fastdl::test;

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? std::atoi(argv[1]) : 500;
  Random random = {1};
  int64_t checked = 0;
  for (int64_t i = 0; i < cases; ++i) {
    const Case c = draw(random, 4, 20, 100);
    if (c.conv.CH <= 0 || c.conv.CW <= 0 || c.pool.OH <= 0 || c.pool.OW <= 0) continue;
    ++checked;
    Check<float>(c, "fp32", random, cpu::direct_forward, cpu::direct_backward).run();
    Check<float>(c, "fp32 implicit GEMM", random, cpu::implicit_gemm_forward, nullptr).run();
    Check<Float16>(c, "fp16", random, cpu::direct_forward, cpu::direct_backward).run();
    Check<BFloat16>(c, "bf16", random, cpu::direct_forward, cpu::direct_backward).run();
  }
  std::printf("direct: %ld geometries, %d failures\n", checked, failures);
  return failures != 0;
}
