// Element types the kernels know, by the code that crosses every interface.
#pragma once
#include <cstdint>

namespace fastdl {

enum class DType : int { kFloat64 = 0, kFloat32 = 1, kFloat16 = 2, kBFloat16 = 3 };

// 16-bit floats as storage; arithmetic happens in fp32.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

}  // namespace fastdl
