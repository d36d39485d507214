// The epilogue, in registers: the maximum of a thread's four positions, bias and ReLU once per pooled
// element, the record; or, without a pool, bias and ReLU of each position. channels_last: 16 bytes of half
// and 8 of record a store.
#pragma once
#include "ops/conv_relu_maxpool/implicit_gemm_tile.cuh"

namespace fastdl::cuda {

template <class T>
class PixelStore {
 public:
  FD_DEVICE PixelStore(const ImplicitGemm<T>& p, int channel) : p_(p), channel_(channel) {
#pragma unroll
    for (int c = 0; c < kChannelsPerThread; ++c)
      bias_[c] = p.bias && channel + c < p.C_out ? fd::to_compute(p.bias[channel + c]) : 0;
  }
  FD_DEVICE bool wanted() const { return channel_ < p_.C_out; }

  // best(c): the WindowMax of the thread's channel c.
  template <class Best>
  FD_DEVICE void operator()(const Pixel& pixel, Best best) const {
    fd::Vector<T, kChannelsPerThread> output;
    fd::Vector<uint8_t, kChannelsPerThread> record;
#pragma unroll
    for (int c = 0; c < kChannelsPerThread; ++c)
      output.value[c] = best(c).template finish<T>(bias_[c], record.value[c]);
    int64_t at = pixel.n * p_.output_strides[0] + channel_ * p_.output_strides[1] +
                 pixel.h * p_.output_strides[2] + pixel.w * p_.output_strides[3];
    if (p_.vector_output) {
      fd::store_vector<kChannelsPerThread>(p_.output + at, output);
      if (p_.record) fd::store_vector<kChannelsPerThread>(p_.record + at, record);
      return;
    }
    // NCHW: lanes of one column hold 16 neighbouring windows, so the sectors fill over two stores.
#pragma unroll
    for (int c = 0; c < kChannelsPerThread; ++c) {
      if (channel_ + c >= p_.C_out) break;
      p_.output[at + c * p_.output_strides[1]] = output.value[c];
      if (p_.record) p_.record[at + c * p_.output_strides[1]] = record.value[c];
    }
  }

 private:
  const ImplicitGemm<T>& p_;
  int channel_;
  fd::Compute<T> bias_[kChannelsPerThread];
};

template <class T, class Multiply>
FD_DEVICE void store_tile(const ImplicitGemm<T>& p, const Place& place, const PixelLocator<T>& locate,
                          int64_t block_start, int first_channel, const Multiply& sums) {
  using Sum = typename Multiply::Sum;
  PixelStore<T> store(p, first_channel + place.channel());
  if (!store.wanted()) return;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    int window = place.window(j);
    if (p.pooled) {
      if (block_start + window * kPositions >= p.positions) continue;
      store(locate(window), [&](int c) {
        WindowMax<Sum> best;
#pragma unroll
        for (int position = 0; position < kPositions; ++position)
          best.take(sums.at(j, position, c), position);
        return best;
      });
      continue;
    }
#pragma unroll
    for (int position = 0; position < kPositions; ++position) {
      if (block_start + window * kPositions + position >= p.positions) continue;
      store(locate(window * kPositions + position), [&](int c) {
        WindowMax<Sum> best;
        best.take(sums.at(j, position, c), 0);
        return best;
      });
    }
  }
}

}  // namespace fastdl::cuda
