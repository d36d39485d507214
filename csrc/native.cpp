// Build information and CPU facts for `fastdl info`; optional, knows no torch, has a Python fallback.
#include <pybind11/pybind11.h>

#include "common/cpu/isa.h"

namespace {

constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512", "avx512bf16", "amx"};

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = __VERSION__;
  info["cplusplus"] = __cplusplus;
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  return info;
}

pybind11::dict cpu_features() {
  pybind11::dict features;
#if defined(__x86_64__)
  features["avx2"] = __builtin_cpu_supports("avx2") != 0;
  features["fma"] = __builtin_cpu_supports("fma") != 0;
  features["avx512f"] = __builtin_cpu_supports("avx512f") != 0;
  features["avx512bf16"] = __builtin_cpu_supports("avx512bf16") != 0;
  features["amx-bf16"] = __builtin_cpu_supports("amx-bf16") != 0;
#endif
  return features;
}

const char* best_isa() { return kIsaNames[static_cast<int>(fastdl::cpu::best_isa())]; }

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Build information and CPU facts.";
  m.def("build_info", &build_info, "Compiler and language version the module was built with.");
  m.def("cpu_features", &cpu_features, "Instruction set extensions of this CPU, by name.");
  m.def("best_isa", &best_isa, "The best instruction set the kernels can use here.");
}
