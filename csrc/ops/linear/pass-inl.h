// Computes dropout(activation(pre)), and backward grad_pre and grad_bias from grad_output.
// Each thread begins with its own share of the chunks of elements (backward: of the parts of rows, as many as
// M alone says) and then takes the others'; partial bias sums are added in the order of the parts. Saves
// nothing of its own: the mask is drawn again from the seed.
#include "common/cpu/math-inl.h"
#include "common/cpu/math_activation-inl.h"
#include "common/cpu/philox-inl.h"
#include "ops/linear/activation-inl.h"

constexpr int64_t kChunk = 16384;
constexpr int kWords = 256;

// One run of consecutive elements, the first of which has index `begin`.
template <Activation kActivation, class T>
void activate_run(const T* pre, T* output, int64_t begin, int64_t n, const Dropout& dropout) {
  typedef Walk<T> W;
  typedef typename W::V V;
  if (!dropout.present) {
    for (int64_t i = 0; i < n; i += W::kStep) {
      const int m = static_cast<int>(n - i < W::kStep ? n - i : W::kStep);
      W::put(output + i, activate<kActivation>(W::get(pre + i, m)), m);
    }
    return;
  }
  const V scale = constant<V>(dropout.scale);
  DropoutWords<kWords> words;
  for (int64_t from = 0; from < n; from += kWords) {
    const int64_t to = n - from < kWords ? n : from + kWords;
    words.draw(dropout, begin + from, to - from);
    for (int64_t i = from; i < to; i += W::kStep) {
      const int m = static_cast<int>(to - i < W::kStep ? to - i : W::kStep);
      const V y = activate<kActivation>(W::get(pre + i, m));
      W::put(output + i, drop(y, words.of(i - from), dropout.threshold, scale), m);
    }
  }
}

#define FASTDL_OF_EACH_ACTIVATION(function)                                                            \
  {function<Activation::kNone, T>,     function<Activation::kRelu, T>, function<Activation::kGelu, T>, \
   function<Activation::kGeluTanh, T>, function<Activation::kSilu, T>, function<Activation::kTanh, T>, \
   function<Activation::kSigmoid, T>}

template <class T>
constexpr void (*kActivateRun[kActivations])(const T*, T*, int64_t, int64_t,
                                             const Dropout&) = FASTDL_OF_EACH_ACTIVATION(activate_run);

template <class T>
void forward(const LinearActivation& args, const ThreadPool& pool) {
  const auto activate_run = kActivateRun<T>[static_cast<int>(args.activation)];
  parallel_tasks(pool, (args.count + kChunk - 1) / kChunk, [&](int64_t task, int64_t) {
    const int64_t begin = task * kChunk, end = begin + kChunk < args.count ? begin + kChunk : args.count;
    activate_run(static_cast<const T*>(args.pre) + begin, static_cast<T*>(args.output) + begin, begin,
                 end - begin, args.dropout);
  });
}

// One row: grad_pre, and the bias sums increased by it.
template <Activation kActivation, class T>
void backward_row(const LinearActivationBackward& args, int64_t row, typename Walk<T>::V* sums) {
  typedef Walk<T> W;
  typedef typename W::V V;
  const Dropout& dropout = args.dropout;
  const int64_t N = args.N, begin = row * N;
  const T* grad_output = static_cast<const T*>(args.grad_output) + begin;
  const T* saved = kActivation == Activation::kNone ? nullptr : static_cast<const T*>(args.saved) + begin;
  T* grad_pre = static_cast<T*>(args.grad_pre) + begin;
  const V scale = constant<V>(dropout.scale), keep = constant<V>(dropout.keep);
  constexpr bool kByOutput = kActivation == Activation::kTanh || kActivation == Activation::kSigmoid;
  DropoutWords<kWords> words;
  for (int64_t from = 0; from < N; from += kWords) {
    const int64_t to = N - from < kWords ? N : from + kWords;
    if (dropout.present) words.draw(dropout, begin + from, to - from);
    for (int64_t i = from; i < to; i += W::kStep) {
      const int m = static_cast<int>(to - i < W::kStep ? to - i : W::kStep);
      V grad = W::get(grad_output + i, m), y = {};
      if constexpr (kActivation != Activation::kNone) y = W::get(saved + i, m);
      if (kByOutput && dropout.present) y = y * keep;
      grad = activate_backward<kActivation>(grad, y);
      if (dropout.present) grad = drop(grad, words.of(i - from), dropout.threshold, scale);
      W::put(grad_pre + i, grad, m);
      if (sums != nullptr) sums[i / W::kStep] += grad;
    }
  }
}

template <class T>
constexpr void (*kBackwardRow[kActivations])(const LinearActivationBackward&, int64_t,
                                             typename Walk<T>::V*) = FASTDL_OF_EACH_ACTIVATION(backward_row);
#undef FASTDL_OF_EACH_ACTIVATION

template <class T>
void backward(const LinearActivationBackward& args, const ThreadPool& pool) {
  typedef Walk<T> W;
  typedef typename W::V V;
  constexpr int64_t kMostParts = 32;
  const int64_t M = args.M, N = args.N, vectors = (N + W::kStep - 1) / W::kStep;
  const int64_t least = kChunk / (N + 1) + 1, even = (M + kMostParts - 1) / kMostParts;
  const int64_t rows = even < least ? least : even, parts = (M + rows - 1) / rows;
  const auto backward_row = kBackwardRow<T>[static_cast<int>(args.activation)];
  V* sums = nullptr;
  if (args.grad_bias != nullptr)
    sums = static_cast<V*>(
        thread_scratch(static_cast<size_t>(parts > 0 ? parts * vectors : vectors) * sizeof(V)));
  parallel_tasks(pool, parts, [&](int64_t part, int64_t) {
    V* own = sums == nullptr ? nullptr : sums + part * vectors;
    for (int64_t i = 0; own != nullptr && i < vectors; ++i) own[i] = V{};
    const int64_t end = (part + 1) * rows < M ? (part + 1) * rows : M;
    for (int64_t row = part * rows; row < end; ++row) backward_row(args, row, own);
  });
  if (sums == nullptr) return;
  T* grad_bias = static_cast<T*>(args.grad_bias);
  for (int64_t i = 0; i < vectors; ++i) {
    V sum = {};
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * vectors + i];
    const int64_t left = N - i * W::kStep;
    W::put(grad_bias + i * W::kStep, sum, static_cast<int>(left < W::kStep ? left : W::kStep));
  }
}

// By dtype. fp64 is scalar: AVX-512 takes that of AVX2. AVX512-BF16 rounds to bf16, and does nothing else.
constexpr void (*kForward[])(const LinearActivation&, const ThreadPool&) = {
#if FASTDL_ISA == FASTDL_ISA_AVX512BF16
    avx512::kForward[0], avx512::kForward[1], avx512::kForward[2],
#elif FASTDL_ISA == FASTDL_ISA_AVX512
    avx2::kForward[0], forward<float>, forward<Float16>,
#else
    forward<double>, forward<float>, forward<Float16>,
#endif
    forward<BFloat16>};
constexpr void (*kBackward[])(const LinearActivationBackward&, const ThreadPool&) = {
#if FASTDL_ISA == FASTDL_ISA_AVX512BF16
    avx512::kBackward[0], avx512::kBackward[1], avx512::kBackward[2],
#elif FASTDL_ISA == FASTDL_ISA_AVX512
    avx2::kBackward[0], backward<float>, backward<Float16>,
#else
    backward<double>, backward<float>, backward<Float16>,
#endif
    backward<BFloat16>};
