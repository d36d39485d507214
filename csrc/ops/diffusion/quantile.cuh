// A quantile of a sample's |x_0|, exactly, and always the same: the digits of the wanted one's bits from the
// highest on, by counting how often each occurs. Floats that are not negative are ordered as their bits.
#pragma once
#include "ops/diffusion/cluster.cuh"
#include "ops/diffusion/step.cuh"

namespace fastdl::cuda {

// Bits of a magnitude, without the sign. What is above kInfinity is NaN.
template <class A>
struct Magnitude;
template <>
struct Magnitude<float> {
  using Bits = uint32_t;
  static constexpr int kBits = 31;
  static constexpr Bits kInfinity = 0x7f800000u;
};
template <>
struct Magnitude<double> {
  using Bits = uint64_t;
  static constexpr int kBits = 63;
  static constexpr Bits kInfinity = 0x7ff0000000000000u;
};
template <class A>
FD_DEVICE typename Magnitude<A>::Bits magnitude_of(A v) {
  typename Magnitude<A>::Bits bits;
  memcpy(&bits, &v, sizeof(v));
  return bits & ~(typename Magnitude<A>::Bits{1} << Magnitude<A>::kBits);
}
template <class A>
FD_DEVICE A value_of(typename Magnitude<A>::Bits bits) {
  A v;
  memcpy(&v, &bits, sizeof(v));
  return v;
}

// f(magnitude) for each of the sample's x_0 before they are limited. Noise is left out where it has no part.
template <class T, class F>
struct MagnitudeJob {
  using A = fd::Compute<T>;
  StepJob<T, true>& step;
  F f;

  template <int N>
  FD_DEVICE void take(int64_t at) {
    A x[N], m[N] = {}, n[N] = {};
    load_elements<T>(step.a.sample, at, x);
    step.load_scaled_model(at, m);
    if (step.c[kX0Noise] != 0) step.load_noise(at, n);
#pragma unroll
    for (int i = 0; i < N; ++i) f(magnitude_of(step.raw_x_0(x[i], m[i], n[i])));
  }
};
template <class T, class F>
FD_DEVICE void for_magnitudes(const Elements& e, int64_t sample, const Share& share, StepJob<T, true>& step,
                              const F& f) {
  MagnitudeJob<T, F> job{step, f};
  for_pieces<T>(e, sample, share, job);
}

constexpr int kDigitBits = 11, kBins = 1 << kDigitBits, kThreadBins = kBins / kSampleThreads;

// One digit of the wanted magnitude, how many are less than it in this digit, and how many share it.
struct Digit {
  unsigned value, less, equal;
};

// Of the cluster's counts: the bin that has the `rank`-th.
FD_DEVICE Digit find_digit(unsigned* bins, unsigned rank) {
  FD_SHARED(Digit, found, [1]);
  unsigned count[kThreadBins], sum = 0;
  const unsigned first = threadIdx.x * kThreadBins;
#pragma unroll
  for (int i = 0; i < kThreadBins; ++i) {
    count[i] = 0;
    for (unsigned block = 0; block < fd::cluster_size(); ++block)
      count[i] += fd::cluster_map(bins, block)[first + i];
    sum += count[i];
  }
  unsigned less = sum_before(sum);
#pragma unroll
  for (int i = 0; i < kThreadBins; ++i) {
    if (less <= rank && rank - less < count[i]) found[0] = {first + i, less, count[i]};
    less += count[i];
  }
  // Nobody clears bins that another still reads.
  fd::cluster_sync();
  return found[0];
}

template <class T>
FD_DEVICE fd::Compute<T> quantile(const Elements& e, int64_t sample, const Share& share,
                                  StepJob<T, true>& step) {
  using A = fd::Compute<T>;
  using Bits = typename Magnitude<A>::Bits;
  FD_SHARED(unsigned, bins, [kBins]);
  const double position = step.a.quantile * static_cast<double>(e.size - 1);
  const unsigned low = static_cast<unsigned>(position);
  unsigned rank = low, equal = 0;
  Bits wanted = 0;
  for (int shift = Magnitude<A>::kBits; shift > 0;) {
    const int above = shift, width = shift < kDigitBits ? shift : kDigitBits;
    shift -= width;
    for (int i = threadIdx.x; i < kBins; i += kSampleThreads) bins[i] = 0;
    __syncthreads();
    const Bits mask = (Bits{1} << width) - 1;
    for_magnitudes<T>(e, sample, share, step, [&](Bits bits) {
      if (bits >> above == wanted) atomicAdd(&bins[bits >> shift & mask], 1u);
    });
    fd::cluster_sync();
    const Digit digit = find_digit(bins, rank);
    wanted = wanted << width | digit.value;
    rank -= digit.less, equal = digit.equal;
  }
  // The next in order, and the largest of all: the least of their complements.
  Bits least[2] = {~Bits{0}, ~Bits{0}};
  for_magnitudes<T>(e, sample, share, step, [&](Bits bits) {
    if (bits > wanted && bits < least[0]) least[0] = bits;
    if (~bits < least[1]) least[1] = ~bits;
  });
  combine_in_cluster(least, [](Bits a, Bits b) { return a < b ? a : b; });
  if (~least[1] > Magnitude<A>::kInfinity) return A(NAN);
  const bool last = rank + 1 < equal || low + 1 == e.size;
  const A at_low = value_of<A>(wanted), at_next = last ? at_low : value_of<A>(least[0]);
  return at_low + (at_next - at_low) * A(position - low);
}

}  // namespace fastdl::cuda
