// Launches a kernel: plain, cooperative (grid barrier) or as clusters. Never <<<>>>, so that the emulation
// can run it.
#pragma once
#include <cuda_runtime.h>

namespace fd {

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;
  unsigned cluster = 1;
};

// What a kernel has to ask for: more than 48 KB of shared memory, static ones counted in, which only the
// driver knows; clusters of more than 8 blocks.
inline cudaError_t permit(const void* function, const LaunchShape& shape) {
  cudaError_t error = cudaSuccess;
  if (shape.shared_bytes > 0)
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shape.shared_bytes));
  if (error == cudaSuccess && shape.cluster > 8)
    error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

// `attributes` must live as long as the result; two are enough.
inline cudaLaunchConfig_t configuration(const LaunchShape& shape, cudaStream_t stream,
                                        cudaLaunchAttribute* attributes) {
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (shape.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  if (shape.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {shape.cluster, 1, 1};
  }
  return config;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   Arguments... arguments) {
  const cudaError_t error = permit(reinterpret_cast<const void*>(kernel), shape);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = configuration(shape, stream, attributes);
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

inline cudaError_t set_zero(void* p, size_t bytes, cudaStream_t stream) {
  return cudaMemsetAsync(p, 0, bytes, stream);
}

inline int current_device() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

// Of dynamic shared memory, that a block may have on the current device.
inline int largest_shared_bytes() {
  int bytes = 0;
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, current_device());
  return bytes;
}

inline int multiprocessors() {
  int count = 0;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, current_device());
  return count;
}

// Whether the code that the current device would run is the kernel, which has static shared memory, and not
// the end that stands for it where its architecture was not compiled.
template <class... Parameters>
bool has_body(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)) == cudaSuccess &&
         attributes.sharedSizeBytes > 0;
}

// Blocks of a cluster that any device with clusters runs; 1 where the device, or the code it would run, has
// none.
template <class... Parameters>
unsigned portable_cluster(void (*kernel)(Parameters...)) {
  int major = 0;
  cudaFuncAttributes attributes;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, current_device()) != cudaSuccess ||
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)) != cudaSuccess)
    return 1;
  return major >= 9 && attributes.ptxVersion >= 90 ? 8 : 1;
}

// How many clusters (of one block: blocks) of this shape the current device runs at once; 0: it cannot.
template <class... Parameters>
int resident_clusters(void (*kernel)(Parameters...), const LaunchShape& shape) {
  const void* function = reinterpret_cast<const void*>(kernel);
  const int device = current_device();
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
  };
  if (shape.shared_bytes > static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) ||
      (shape.cooperative && !attribute(cudaDevAttrCooperativeLaunch)) ||
      (shape.cluster > 1 && attribute(cudaDevAttrComputeCapabilityMajor) < 9))
    return 0;
  int count = 0;
  cudaError_t error = permit(function, shape);
  if (error == cudaSuccess && shape.cluster == 1) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, function, static_cast<int>(shape.block.x),
                                                          shape.shared_bytes);
    count *= attribute(cudaDevAttrMultiProcessorCount);
  } else if (error == cudaSuccess) {
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = configuration(shape, nullptr, attributes);
    error = cudaOccupancyMaxActiveClusters(&count, function, &config);
  }
  if (error == cudaSuccess) return count;
  cudaGetLastError();  // the question itself must leave no error behind
  return 0;
}

}  // namespace fd
