#include "common/cpu/isa.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastdl::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512bf16", "amx"};

// Linux gives a process the 8 KB tile state only on request, and its signal frames grow by it: asked for only
// where AMX is the choice.
Isa granted(Isa isa) {
#if defined(__x86_64__) && !defined(FASTDL_EMULATE_AVX512)
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18;
  if (isa == Isa::kAmx && syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) != 0)
    return Isa::kAvx512Bf16;
#endif
  return isa;
}

Isa detect() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kBaseline;
#ifdef FASTDL_EMULATE_AVX512
  return Isa::kAmx;
#endif
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
    return Isa::kAvx2;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::kAvx512;
  if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-bf16")) return Isa::kAvx512Bf16;
  return Isa::kAmx;
#else
  return Isa::kBaseline;
#endif
}

Isa pick() {
  const Isa best = detect();
  const char* asked = std::getenv("FASTDL_CPU_ISA");
  if (asked != nullptr) {
    for (int i = 0; i <= static_cast<int>(best); ++i)
      if (std::strcmp(asked, kNames[i]) == 0) return granted(static_cast<Isa>(i));
  }
  return granted(best);
}

}  // namespace

Isa best_isa() {
  static const Isa isa = granted(detect());
  return isa;
}

bool is_amd() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

bool halves_vectors() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amdfam19h") && __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

Isa current_isa() {
  static const Isa isa = pick();
  return isa;
}

}  // namespace fastdl::cpu
