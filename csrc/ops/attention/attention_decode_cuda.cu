// Attention of few query rows: how the keys are split, how many blocks (attention_decode.cuh). Host code.
#include "ops/attention/attention_decode.cuh"
#include "ops/attention/attention_launch.cuh"

namespace fastdl::cuda {
namespace {

// Two blocks for each processor, of four tiles of keys at least; one row's results are combined by one block.
constexpr int64_t kBlocksOfProcessor = 2, kFewestTiles = 4, kMostSplits = 128;

DecodeGrid decode_grid(const AttentionCall& c) {
  const int64_t row_tiles = blocks_of(c.H / c.H_kv * c.max_q, kDecodeM), tiles = c.B * c.H_kv * row_tiles;
  const auto side = [](int64_t window) { return window > kOpen ? kOpen : window; };
  int64_t keys = c.max_k;
  if (c.window_left >= 0 && (c.causal != Causal::kNone || c.window_right >= 0)) {
    const int64_t seen =
        side(c.window_left) + (c.causal != Causal::kNone ? 0 : side(c.window_right)) + c.max_q;
    keys = seen < keys ? seen : keys;
  }
  const int64_t of_keys =
      keys / (kFewestTiles * (c.dtype == DType::kFloat32 ? kDecodeN<float> : kDecodeN<__half>));
  int64_t splits = tiles > 0 ? kBlocksOfProcessor * fd::multiprocessors() / tiles : 1;
  for (const int64_t most : {of_keys, kMostSplits}) splits = splits < most ? splits : most;
  return {static_cast<int>(row_tiles), static_cast<int>(splits > 1 ? splits : 1)};
}

}  // namespace

int64_t attention_decode_workspace(const AttentionCall& c) {
  const DecodeGrid grid = decode_grid(c);
  const int64_t rows = c.B * c.H_kv * grid.row_tiles * grid.splits * kDecodeM;
  return grid.splits == 1
             ? 0
             : rows * result_floats(static_cast<int>(c.D_v)) * static_cast<int64_t>(sizeof(float));
}

cudaError_t attention_decode(const AttentionForward& a, void* workspace, cudaStream_t stream) {
  const AttentionCall& c = a.c;
  if (attention_refusal(c)) return cudaErrorNotSupported;
  const DecodeGrid grid = decode_grid(c);
  const int64_t tiles = c.B * c.H_kv * grid.row_tiles, blocks = tiles * grid.splits;
  if (blocks <= 0) return cudaSuccess;
  return with_kernel(c, [&](auto element, auto size) {
    using T = decltype(element);
    constexpr int kD = decltype(size)::value;
    static_assert(kDecodeWarps * kDecodeM * (kD + 2) * sizeof(float) <= decode_bytes<T, kD>(1),
                  "the results of the warps take the place of the tiles");
    const int stages = stages_of(decode_bytes<T, kD>(2));
    const fd::LaunchShape shape{dim3(static_cast<unsigned>(blocks)), dim3(kDecodeThreads),
                                static_cast<size_t>(decode_bytes<T, kD>(stages))};
    float* partials = static_cast<float*>(workspace);
    const cudaError_t error =
        fd::launch(attention_decode_kernel<T, kD>, shape, stream, a, partials, grid, stages);
    if (error != cudaSuccess || grid.splits == 1) return error;
    const int64_t all = c.H / c.H_kv * c.max_q, rows = all < kDecodeM ? all : kDecodeM;
    return fd::launch(attention_combine_kernel<T, kD>,
                      {dim3(static_cast<unsigned>(tiles * rows)), dim3(kDecodeThreads)}, stream, a, partials,
                      grid, static_cast<int>(rows));
  });
}

}  // namespace fastdl::cuda
