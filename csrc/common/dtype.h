// Element types the kernels know, by the code that crosses every interface.
#pragma once

namespace fastdl {

enum class DType : int { kFloat64 = 0, kFloat32 = 1, kFloat16 = 2, kBFloat16 = 3 };

}  // namespace fastdl
