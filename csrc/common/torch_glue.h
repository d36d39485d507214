// The border between tensors and pointers: the only header that knows torch. Included by *_torch.cpp alone.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/cpu/pages.h"
#include "common/cpu/parallel.h"
#include "common/dtype.h"

// torch 2.11 has it under another name.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace fastdl {

using torch::stable::Tensor;
using IntList = std::vector<int64_t>;

// A plain message: no source path of the build machine.
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline IntList sizes_of(const Tensor& t) {
  IntList sizes(static_cast<size_t>(t.dim()));
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = t.size(static_cast<int64_t>(i));
  return sizes;
}

// A shape as part of a message: written where the message is, so that a check that holds costs nothing.
struct ShapeText {
  const Tensor* tensor;
  const IntList* sizes;
};
inline ShapeText shape_text(const Tensor& t) { return {&t, nullptr}; }
inline ShapeText shape_text(const IntList& sizes) { return {nullptr, &sizes}; }
inline std::ostream& operator<<(std::ostream& out, const ShapeText& shape) {
  if (shape.tensor) return out << shape_text(sizes_of(*shape.tensor));
  out << '[';
  for (size_t i = 0; i < shape.sizes->size(); ++i) out << (i ? ", " : "") << (*shape.sizes)[i];
  return out << ']';
}

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case torch::headeronly::ScalarType::Double:
      return DType::kFloat64;
    case torch::headeronly::ScalarType::Float:
      return DType::kFloat32;
    case torch::headeronly::ScalarType::Half:
      return DType::kFloat16;
    case torch::headeronly::ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      throw std::runtime_error("dtype must be float64, float32, float16 or bfloat16");
  }
}

// torch's own test, sizes of 1 excepted: channels_last and not contiguous as well.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.is_contiguous()) return false;
  int64_t expected = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// An output of an operator; a large one on the CPU in huge pages, which nothing has touched yet.
inline Tensor empty_strided(const IntList& sizes, const IntList& strides, torch::headeronly::ScalarType dtype,
                            const Tensor& like) {
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), code, device_type, device_index,
                                                         &handle));
  Tensor t(handle);
  if (device_type == aoti_torch_device_type_cpu()) {
    int64_t bytes;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(handle, &bytes));
    cpu::use_huge_pages(t.data_ptr(), static_cast<size_t>(bytes));
  }
  return t;
}

// [N, C, H, W], contiguous or channels_last, on the device of `like`
inline Tensor empty_image(int64_t N, int64_t C, int64_t H, int64_t W, bool channels_last,
                          torch::headeronly::ScalarType dtype, const Tensor& like) {
  const IntList strides = channels_last ? IntList{H * W * C, 1, W * C, C} : IntList{C * H * W, H * W, W, 1};
  return empty_strided({N, C, H, W}, strides, dtype, like);
}

inline Tensor empty_contiguous(const IntList& sizes, torch::headeronly::ScalarType dtype,
                               const Tensor& like) {
  IntList strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i];
  }
  return empty_strided(sizes, strides, dtype, like);
}

inline void copy_strides(const Tensor& t, int64_t (&strides)[4]) {
  for (int i = 0; i < 4; ++i) strides[i] = t.stride(i);
}

// torch's thread pool: torch.set_num_threads() holds, no second OpenMP. In a forked child, whose pool has no
// threads, bodies run one after another.
const cpu::ThreadPool& torch_thread_pool();

}  // namespace fastdl
