// What CUDA operators need of torch besides torch_glue.h: device, stream, workspace. Included by
// *_cuda_torch.cpp alone.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/torch_glue.h"

namespace fastdl {

// The device of `t` while it lives, and torch's current stream there.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) : guard_(t.get_device_index()), index_(t.get_device_index()) {}
  cudaStream_t stream() const {
    void* stream;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }
  int major() const {
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index_);
    return major;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int index_;
};

inline void check_launch(cudaError_t error, const char* what) {
  check(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

inline Tensor workspace(int64_t bytes, const Tensor& like) {
  return empty_contiguous({bytes}, torch::headeronly::ScalarType::Byte, like);
}

}  // namespace fastdl
