// Fills one stage of shared memory: kBlockM rows of x (gathered as im2col would) and the packed weights.
// begin() starts a tile's loads, finish() completes what went through registers; describe() prepares a tile's
// table.
#pragma once
#include "ops/conv_relu_maxpool/implicit_gemm_tile.cuh"

namespace fastdl::cuda {

// Where row `row` of the tile starts in x, and which taps fall inside: bit kh, and bit 16 + kw.
struct InputRow {
  int64_t offset = 0;
  uint32_t inside = 0;
};

template <class T>
FD_DEVICE InputRow input_row(const ImplicitGemm<T>& p, const PixelLocator<T>& locate, int64_t block_start,
                             int row) {
  InputRow result;
  int position = position_of_row(row);
  if (block_start + position >= p.positions) return result;
  Pixel pixel = locate(p.pooled ? position / kPositions : position);
  int inner = position % kPositions;
  int ch = p.pooled ? 2 * pixel.h + inner / 2 : pixel.h, cw = p.pooled ? 2 * pixel.w + inner % 2 : pixel.w;
  int h = ch * p.stride_h - p.padding_h, w = cw * p.stride_w - p.padding_w;
  result.offset = pixel.n * p.x_strides[0] + h * p.x_strides[2] + w * p.x_strides[3];
  for (int kh = 0; kh < p.KH; ++kh)
    if (static_cast<unsigned>(h + kh * p.dilation_h) < static_cast<unsigned>(p.H)) result.inside |= 1u << kh;
  for (int kw = 0; kw < p.KW; ++kw)
    if (static_cast<unsigned>(w + kw * p.dilation_w) < static_cast<unsigned>(p.W))
      result.inside |= 0x10000u << kw;
  return result;
}
FD_DEVICE bool inside(uint32_t taps, int kh, int kw) { return taps >> kh & taps >> (16 + kw) & 1; }

// x channels_last, C a multiple of 16 bytes: cp.async of 16 bytes, four neighbouring threads a row (64 bytes,
// two sectors). Depth runs over (kh, kw, c).
template <class T, int kThreads>
class LoadChannelsLast {
 public:
  static constexpr bool kTapsOutside = true;

  FD_DEVICE LoadChannelsLast(const ImplicitGemm<T>& p, const PixelLocator<T>& locate, int64_t block_start)
      : p_(p) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) rows_[i] = input_row(p, locate, block_start, first_row() + i * kStep);
  }
  FD_DEVICE void describe(int) {}
  FD_DEVICE void begin(int tile, char* stage) {
    uint32_t tap = tile * kChunks + threadIdx.x % kChunks;
    int c = p_.by_chunks.split(tap) * kChunk<T>;
    uint32_t kh = tap;
    int kw = p_.by_KW.split(kh);
    int64_t shift = static_cast<int64_t>(kh) * p_.dilation_h * p_.x_strides[2] +
                    int64_t{kw} * p_.dilation_w * p_.x_strides[3] + c;
    bool real = static_cast<int>(kh) < p_.KH;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      bool valid = real && inside(rows_[i].inside, kh, kw);
      fd::cp_async16(stage + swizzled(first_row() + i * kStep, threadIdx.x % kChunks),
                     valid ? p_.x + rows_[i].offset + shift : p_.x, valid);
    }
  }
  FD_DEVICE void finish(char*) {}

 private:
  static constexpr int kStep = kThreads / kChunks, kRows = kBlockM / kStep;
  static FD_DEVICE int first_row() { return threadIdx.x / kChunks; }

  const ImplicitGemm<T>& p_;
  InputRow rows_[kRows];
};

// Any strides, any C: a thread owns whole rows, so that its depth runs over the same taps as every other
// thread's and neighbouring threads read neighbouring positions (coalesced in NCHW). Values wait in registers
// while the tile before is multiplied. Depth runs over (c, kh, kw), the order of the weights.
template <class T, int kThreads>
class LoadGather {
 public:
  static constexpr bool kTapsOutside = false;

  FD_DEVICE LoadGather(const ImplicitGemm<T>& p, const PixelLocator<T>& locate, int64_t block_start) : p_(p) {
    FD_SHARED(int64_t, offsets, [2 * kDepth<T>]);
    FD_SHARED(int, taps, [2 * kDepth<T>]);
    offsets_ = offsets;
    taps_ = taps;
#pragma unroll
    for (int i = 0; i < kRows; ++i) rows_[i] = input_row(p, locate, block_start, threadIdx.x + i * kThreads);
  }
  // Two tables take turns: a tile's is written one barrier before begin() reads it.
  FD_DEVICE void describe(int tile) {
    if (threadIdx.x >= kDepth<T>) return;
    int slot = tile % 2 * kDepth<T> + threadIdx.x;
    uint32_t c = tile * kDepth<T> + threadIdx.x;
    bool real = static_cast<int>(c) < p_.depth;
    int kw = p_.by_KW.split(c), kh = p_.by_KH.split(c);
    offsets_[slot] = c * p_.x_strides[1] + int64_t{kh} * p_.dilation_h * p_.x_strides[2] +
                     int64_t{kw} * p_.dilation_w * p_.x_strides[3];
    // Tap kMaxTaps is never inside.
    taps_[slot] = real ? kh | kw << 8 : kMaxTaps;
  }
  FD_DEVICE void begin(int tile, char*) {
#pragma unroll
    for (int k = 0; k < kDepth<T>; ++k) {
      int64_t offset = offsets_[tile % 2 * kDepth<T> + k];
      int tap = taps_[tile % 2 * kDepth<T> + k];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        T v = fd::from_compute<T>(0);
        if (inside(rows_[i].inside, tap & 255, tap >> 8)) v = p_.x[rows_[i].offset + offset];
        held_[i][k / kChunk<T>].value[k % kChunk<T>] = v;
      }
    }
  }
  FD_DEVICE void finish(char* stage) {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk)
        fd::store_vector<kChunk<T>>(reinterpret_cast<T*>(stage + swizzled(threadIdx.x + i * kThreads, chunk)),
                                    held_[i][chunk]);
  }

 private:
  static constexpr int kRows = kBlockM / kThreads;

  const ImplicitGemm<T>& p_;
  InputRow rows_[kRows];
  int64_t* offsets_;
  int* taps_;
  fd::Vector<T, kChunk<T>> held_[kRows][kChunks];
};

// One tile of the packed weights, contiguous in memory: kBlockN rows of 64 bytes.
template <class T, int kThreads, int kBlockN>
FD_DEVICE void load_weight(const ImplicitGemm<T>& p, int channel_tile, int tile, char* stage) {
  const char* from = reinterpret_cast<const char*>(p.packed) +
                     (int64_t{channel_tile} * p.depth_tiles + tile) * (kBlockN * kRowBytes);
#pragma unroll
  for (int i = 0; i < kBlockN * kChunks / kThreads; ++i) {
    int chunk = threadIdx.x + i * kThreads;
    fd::cp_async16(stage + swizzled(chunk / kChunks, chunk % kChunks), from + chunk * 16);
  }
}

}  // namespace fastdl::cuda
