// Boxes of a tensor of 16-bit elements into shared memory by the copy engine (sm_90): 64 columns and some
// rows of one head of one sequence, as shared_matrix.cuh lays them out, zeros where the tensor ends.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fd {

using TensorMap = CUtensorMap;

// Host. Sizes of columns, rows, heads, sequences; strides in elements of all but the columns, multiples of 8
// as the first element's address is of 16 bytes; of what is there once it does not count. The driver is asked
// by name, since nothing links it.
inline cudaError_t make_tensor_map(TensorMap* map, const void* first, const int64_t (&sizes)[4],
                                   const int64_t (&strides)[3], int box_rows) {
  static void* const encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
    return error == cudaSuccess && status == cudaDriverEntryPointSuccess ? found : nullptr;
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t dims[4], bytes[3];
  for (int i = 0; i < 4; ++i) dims[i] = static_cast<cuuint64_t>(sizes[i]);
  for (int i = 0; i < 3; ++i)
    bytes[i] = static_cast<cuuint64_t>(2 * (sizes[i + 1] > 1 ? strides[i] : (sizes[0] + 7) / 8 * 8));
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_rows), 1, 1}, every[4] = {1, 1, 1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode)(
      map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(first), dims, bytes, box, every,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// By one thread. The map is a __grid_constant__ parameter; box_rows * 128 bytes arrive at the barrier.
FD_DEVICE void copy_box(void* to, const TensorMap& map, int column, int row, int head, int sequence,
                        uint64_t* p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(p)), "r"(column), "r"(row), "r"(head), "r"(sequence)
      : "memory");
#else
  __trap();
#endif
}

}  // namespace fd
