// Launchers of the passes around torch's product: activation and dropout, their backward, the bias gradient.
#include "ops/linear/linear_activation.cuh"
#include "ops/linear/linear_cuda.h"

namespace fastdl::cuda {
namespace {

constexpr int64_t kMostParts = 128, kLeastRows = 64;

unsigned blocks_of(int64_t items, int64_t each) { return static_cast<unsigned>((items + each - 1) / each); }

int64_t rows_per_part(int64_t M) {
  const int64_t even = (M + kMostParts - 1) / kMostParts;
  return even < kLeastRows ? kLeastRows : even;
}

// Calls f<kActivation>() for the activation of a call.
template <template <Activation> class Launch, class... Arguments>
cudaError_t with_activation(Activation activation, const Arguments&... arguments) {
  switch (activation) {
    case Activation::kNone:
      return Launch<Activation::kNone>::run(arguments...);
    case Activation::kRelu:
      return Launch<Activation::kRelu>::run(arguments...);
    case Activation::kGelu:
      return Launch<Activation::kGelu>::run(arguments...);
    case Activation::kGeluTanh:
      return Launch<Activation::kGeluTanh>::run(arguments...);
    case Activation::kSilu:
      return Launch<Activation::kSilu>::run(arguments...);
    case Activation::kTanh:
      return Launch<Activation::kTanh>::run(arguments...);
    case Activation::kSigmoid:
      return Launch<Activation::kSigmoid>::run(arguments...);
  }
  return cudaErrorInvalidValue;
}

template <Activation kActivation>
struct Forward {
  template <class T>
  static cudaError_t run(const ActivationPass<T>& p, cudaStream_t stream) {
    const bool vectors =
        fd::aligned(p.pre, alignof(fd::Vector<T, 4>)) && fd::aligned(p.output, alignof(fd::Vector<T, 4>));
    auto kernel = vectors ? linear_activation_kernel<T, kActivation, true>
                          : linear_activation_kernel<T, kActivation, false>;
    const dim3 grid(blocks_of(p.count, 4 * kActivationThreads));
    return fd::launch(kernel, {grid, dim3(kActivationThreads)}, stream, p);
  }
};

template <Activation kActivation>
struct Backward {
  template <class T>
  static cudaError_t run(const ActivationPassBackward<T>& p, cudaStream_t stream) {
    // Four doubles of gelu's backward do not fit the 64 registers that ptxas allows it.
    constexpr int kWide = sizeof(T) == 8 ? 1 : 4;
    constexpr size_t kAlignment = alignof(fd::Vector<T, kWide>);
    const bool vectors = p.N % kWide == 0 && fd::aligned(p.grad_output, kAlignment) &&
                         fd::aligned(p.saved, kAlignment) && fd::aligned(p.grad_pre, kAlignment);
    auto kernel = vectors ? linear_activation_backward_kernel<T, kActivation, kWide>
                          : linear_activation_backward_kernel<T, kActivation, 1>;
    const dim3 grid(blocks_of(p.N, kSide * (vectors ? kWide : 1)), static_cast<unsigned>(p.parts));
    return fd::launch(kernel, {grid, dim3(kActivationThreads)}, stream, p);
  }
};

template <class T>
cudaError_t backward(const LinearActivationBackward& args, const int64_t* seed, void* workspace,
                     cudaStream_t stream) {
  ActivationPassBackward<T> p{};
  p.grad_output = static_cast<const T*>(args.grad_output), p.saved = static_cast<const T*>(args.saved);
  p.grad_pre = static_cast<T*>(args.grad_pre), p.grad_bias = static_cast<T*>(args.grad_bias);
  p.partial = args.grad_bias ? static_cast<fd::Compute<T>*>(workspace) : nullptr;
  p.M = args.M, p.N = args.N, p.rows_per_part = rows_per_part(args.M);
  p.parts = static_cast<int>(blocks_of(args.M, p.rows_per_part));
  p.seed = seed, p.threshold = args.dropout.threshold;
  p.scale = static_cast<fd::Compute<T>>(args.dropout.scale);
  p.keep = static_cast<fd::Compute<T>>(args.dropout.keep);
  if (args.N == 0) return cudaSuccess;
  if (args.M > 0)
    if (cudaError_t error = with_activation<Backward>(args.activation, p, stream)) return error;
  // Without rows there is no part, and the gradient is 0.
  if (!args.grad_bias) return cudaSuccess;
  return fd::launch(linear_grad_bias_kernel<T>,
                    {dim3(blocks_of(args.N, kActivationThreads)), dim3(kActivationThreads)}, stream, p);
}

}  // namespace

cudaError_t linear_activation_forward(const LinearActivation& args, const int64_t* seed,
                                      cudaStream_t stream) {
  if (args.count == 0) return cudaSuccess;
  return fd::with_type(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    ActivationPass<T> p{static_cast<const T*>(args.pre),
                        static_cast<T*>(args.output),
                        args.count,
                        seed,
                        args.dropout.threshold,
                        static_cast<fd::Compute<T>>(args.dropout.scale)};
    return with_activation<Forward>(args.activation, p, stream);
  });
}

int64_t linear_activation_backward_workspace(const LinearActivationBackward& args) {
  if (!args.grad_bias) return 0;
  return blocks_of(args.M, rows_per_part(args.M)) * args.N *
         static_cast<int64_t>(args.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float));
}

cudaError_t linear_activation_backward(const LinearActivationBackward& args, const int64_t* seed,
                                       void* workspace, cudaStream_t stream) {
  return fd::with_type(args.dtype,
                       [&](auto zero) { return backward<decltype(zero)>(args, seed, workspace, stream); });
}

}  // namespace fastdl::cuda
