// Arrays for drivers of emulated kernels: exactly as long as asked for, poisoned, an unreadable page behind.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

inline std::mt19937 generator(1);

// Aligned to 16 bytes; the slack before the page is checked. Under AddressSanitizer plain malloc: it watches
// itself.
template <class T>
class Array {
 public:
  explicit Array(size_t count) : size(count), bytes_(count * sizeof(T)) {
#if defined(__SANITIZE_ADDRESS__)
    data = static_cast<T*>(malloc(bytes_));
#else
    length_ = (bytes_ + 16 + 4095) / 4096 * 4096 + 4096;
    map_ = static_cast<char*>(
        mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(map_ + length_ - 4096, 4096, PROT_NONE);
    data = reinterpret_cast<T*>(map_ + (length_ - 4096 - bytes_) / 16 * 16);
    memset(slack(), 0xA5, slack_bytes());
#endif
    memset(static_cast<void*>(data), 0xFF, bytes_);
  }
  Array(const Array&) = delete;
  ~Array() {
    if (!map_) {
      free(data);
      return;
    }
    for (size_t i = 0; i < slack_bytes(); ++i)
      if (slack()[i] != static_cast<char>(0xA5)) {
        puts("FAIL guard: bytes behind an array were written");
        _exit(1);
      }
    munmap(map_, length_);
  }
  Array& random(float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    for (size_t i = 0; i < size; ++i) data[i] = T(normal(generator));
    return *this;
  }
  Array& integers(int most) {
    std::uniform_int_distribution<int> uniform(-most, most);
    for (size_t i = 0; i < size; ++i) data[i] = T(static_cast<float>(uniform(generator)));
    return *this;
  }
  Array& fill(T value) {
    for (size_t i = 0; i < size; ++i) data[i] = value;
    return *this;
  }
  T& operator[](size_t i) { return data[i]; }

  T* data;
  size_t size;

 private:
  char* slack() { return reinterpret_cast<char*>(data) + bytes_; }
  size_t slack_bytes() { return map_ + length_ - 4096 - slack(); }

  size_t bytes_, length_ = 0;
  char* map_ = nullptr;
};
