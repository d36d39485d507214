// What the C++ kernel drivers share: a thread pool of std::thread (visible to sanitizers), tensors that end
// at an unreadable page, element conversions, random values.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "common/cpu/parallel.h"
#include "common/dtype.h"

namespace fastdl::test {

inline int64_t num_threads = 1;

inline const cpu::ThreadPool kThreadPool = {[](int64_t workers, void (*body)(void*, int64_t), void* context) {
                                              std::vector<std::thread> threads;
                                              for (int64_t i = 1; i < workers; ++i)
                                                threads.emplace_back(body, context, i);
                                              body(context, 0);
                                              for (std::thread& t : threads) t.join();
                                            },
                                            []() { return num_threads; }};

// `count` elements whose last byte is the last of its page; the next page faults. Even masked lanes are
// caught.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : count_(count) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    mapped_ = (bytes + page - 1) / page * page + page;
    base_ = static_cast<char*>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + mapped_ - page, page, PROT_NONE) != 0) std::abort();
    data_ = reinterpret_cast<T*>(base_ + mapped_ - page - bytes);
    std::memset(data_, 0x5a, bytes);
  }
  Guarded(Guarded&& other)
      : count_(other.count_),
        mapped_(other.mapped_),
        base_(std::exchange(other.base_, nullptr)),
        data_(other.data_) {}
  Guarded& operator=(Guarded&& other) {
    std::swap(count_, other.count_), std::swap(mapped_, other.mapped_);
    std::swap(base_, other.base_), std::swap(data_, other.data_);
    return *this;
  }
  ~Guarded() {
    if (base_ != nullptr) munmap(base_, mapped_);
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return count_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  bool same_bytes(const Guarded& other) const {
    return count_ == other.count_ &&
           std::memcmp(data_, other.data_, static_cast<size_t>(count_) * sizeof(T)) == 0;
  }

 private:
  int64_t count_;
  size_t mapped_;
  char* base_;
  T* data_;
};

#if defined(__aarch64__)
typedef __fp16 CompilerFloat16;  // GCC 12 knows _Float16 in C there only
#else
typedef _Float16 CompilerFloat16;
#endif

inline double value(double x) { return x; }
inline double value(float x) { return x; }
inline double value(Float16 x) {
  CompilerFloat16 h;
  std::memcpy(&h, &x, 2);
  return h;
}
inline double value(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline void assign(double* p, double x) { *p = x; }
inline void assign(float* p, double x) { *p = static_cast<float>(x); }
inline void assign(Float16* p, double x) {
  const auto h = static_cast<CompilerFloat16>(static_cast<float>(x));
  std::memcpy(p, &h, 2);
}
inline void assign(BFloat16* p, double x) {
  const float f = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  p->bits = static_cast<uint16_t>(f != f ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T>
constexpr DType kDType = DType::kFloat64;
template <>
constexpr DType kDType<float> = DType::kFloat32;
template <>
constexpr DType kDType<Float16> = DType::kFloat16;
template <>
constexpr DType kDType<BFloat16> = DType::kBFloat16;

// splitmix64
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-52 - 1; }  // [-1, 1)
};

inline void set_strides(int64_t C, int64_t H, int64_t W, bool channels_last, int64_t* strides) {
  const int64_t contiguous[4] = {C * H * W, H * W, W, 1}, last[4] = {C * H * W, 1, W * C, C};
  std::memcpy(strides, channels_last ? last : contiguous, sizeof(contiguous));
}

inline int64_t at(const int64_t* s, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * s[0] + c * s[1] + h * s[2] + w * s[3];
}

// torch's rule: with ceil_mode no window starts beyond the left-padded input.
inline int64_t pooled_size(int64_t size, int64_t window, int64_t stride, int64_t padding, int64_t dilation,
                           bool ceil) {
  const int64_t span = size + 2 * padding - dilation * (window - 1) - 1;
  if (span < 0) return 0;
  int64_t pooled = (span + (ceil ? stride - 1 : 0)) / stride + 1;
  if (ceil && (pooled - 1) * stride >= size + padding) --pooled;
  return pooled;
}

}  // namespace fastdl::test
