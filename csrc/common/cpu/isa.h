// The instruction set the CPU kernels use: chosen once per process, from the CPU, the OS and FASTDL_CPU_ISA.
#pragma once

namespace fastdl::cpu {

enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmx = 4 };

// The best instruction set of this machine, or the one FASTDL_CPU_ISA names if the machine has it.
Isa current_isa();

// The best instruction set of this machine.
Isa best_isa();

// Whether the CPU is AMD's: MKL, whose products torch takes, has code for AVX2 alone there.
bool is_amd();

// Whether the CPU executes 512 bits in two halves, as Zen 4 does: code for AVX2 multiplies as fast there.
bool halves_vectors();

}  // namespace fastdl::cpu
