// wgmma, the twins of common/cuda/wgmma.cuh: descriptors, swizzled shared memory and fragments as in the PTX
// manual. Products read shared memory as early as they may where copies land late, and only when somebody
// waits where copies land early. Their sums are NaN for a thread until it has waited.
#pragma once
#include "emulation/tensor_core.h"

namespace emu {

constexpr int kWarpgroup = 128, kProductDepth = 16;

// A matrix in shared memory: start, distances, swizzle mode and base offset of a descriptor.
class SharedMatrix {
 public:
  SharedMatrix(uint64_t bits, bool transposed, Site site) : transposed_(transposed), site_(site) {
    const auto field = [&](int shift) { return static_cast<unsigned>(bits >> shift & 0x3fff) << 4; };
    start_ = field(0), leading_ = field(16), stride_ = field(32);
    constexpr uint64_t kUnused =
        uint64_t{3} << 14 | uint64_t{3} << 30 | uint64_t{7} << 46 | uint64_t{1023} << 52;
    if (bits & kUnused) fail("wgmma: unused bits of a descriptor are set", site);
    if (bits >> 62 != 1) fail("wgmma: only swizzling by 128 bytes is emulated", site);
    if ((bits >> 49 & 7) != 0 || (start_ >> 7 & 7) != 0)
      fail("wgmma: the matrix does not begin at a swizzle pattern of 1024 bytes", site);
  }
  // 16 bytes: 8 of the 16 columns of a row; transposed, 8 columns of one of the 16 rows.
  char* chunk(int row, int column) const {
    const unsigned offset = transposed_
                                ? column / 64 * leading_ + column % 64 * 2 + row / 8 * stride_ + row % 8 * 128
                                : row / 8 * stride_ + row % 8 * 128 + column * 2;
    return shared_chunk(swizzle_128(start_ + offset), site_);
  }

 private:
  unsigned start_, leading_, stride_;
  bool transposed_;
  Site site_;
};

// ThreadSanitizer: a warp's first lane reads the warp's 16 rows on the left, and all of the right matrix.
inline void read_operands(const Product& p) {
  (void)p;
#if defined(__SANITIZE_THREAD__)
  if (self->lane != 0) return;
  const auto read = [](const char* chunk) {
    if (chunk) __tsan_read_range((void*)chunk, 16);
  };
  const int warp = static_cast<int>(self->id.x) % kWarpgroup / 32;
  const SharedMatrix right(p.right, p.transposed, p.site);
  for (int row = 0; row < (p.transposed ? kProductDepth : 8 * p.tiles); ++row)
    for (int column = 0; column < (p.transposed ? 8 * p.tiles : kProductDepth); column += 8)
      read(right.chunk(row, column));
  if (p.in_registers) return;
  const SharedMatrix left(p.left, false, p.site);
  for (int row = 16 * warp; row < 16 * warp + 16; ++row) read(left.chunk(row, 0)), read(left.chunk(row, 8));
#endif
}

inline void multiply(Product& p) {
  EMU_QUIET p.done = true;
  const int columns = 8 * p.tiles;
  std::vector<float> left(64 * kProductDepth), right(kProductDepth * columns);
  const auto copy = [&](const SharedMatrix& m, int rows, int width, auto at) {
    for (int row = 0; row < rows; ++row)
      for (int column = 0; column < width; column += 8) {
        const char* chunk = m.chunk(row, column);
        if (!chunk) return;
        for (int i = 0; i < 8; ++i) {
          uint16_t bits;
          memcpy(&bits, chunk + 2 * i, 2);
          at(row, column + i) = p.element(bits);
        }
      }
  };
  const auto in_right = [&](int k, int n) -> float& { return right[k * columns + n]; };
  const SharedMatrix matrix(p.right, p.transposed, p.site);
  if (p.transposed)
    copy(matrix, kProductDepth, columns, in_right);
  else
    copy(matrix, columns, kProductDepth, [&](int n, int k) -> float& { return in_right(k, n); });
  if (!p.in_registers)
    copy(SharedMatrix(p.left, false, p.site), 64, kProductDepth,
         [&](int m, int k) -> float& { return left[m * kProductDepth + k]; });
  for (int t = 0; t < kWarpgroup && p.in_registers; ++t)
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 2; ++half)
        left[(16 * (t / 32) + t % 32 / 4 + 8 * (i & 1)) * kProductDepth + t % 4 * 2 + half + 8 * (i >> 1)] =
            p.element(static_cast<uint16_t>(p.fragments[t][i] >> (16 * half)));
  for (int t = 0; t < kWarpgroup; ++t)
    for (int i = 0; i < 4 * p.tiles; ++i) {
      const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (i >> 1 & 1), column = i / 4 * 8 + t % 4 * 2 + (i & 1);
      float sum = p.add ? p.sums[t][i] : 0;
      for (int k = 0; k < kProductDepth; ++k)
        sum += left[row * kProductDepth + k] * right[k * columns + column];
      p.sums[t][i] = sum;
    }
}

inline std::deque<Product>& products_of_warpgroup() {
  return self->block->products[static_cast<int>(self->id.x) / kWarpgroup];
}

// A thread does not wait for the others: the product begins when the last has come.
inline void deposit(float* sums, const uint32_t* fragments, Product wanted, Site site) {
  read_operands(wanted);
  EMU_QUIET self->site = site;
  std::deque<Product>& products = products_of_warpgroup();
  const int number = self->products++;
  if (number == static_cast<int>(products.size())) products.push_back(wanted);
  Product& p = products[number];
  if (p.site.line != site.line || p.left != wanted.left || p.right != wanted.right || p.add != wanted.add ||
      p.tiles != wanted.tiles)
    fail("wgmma: the threads of a warpgroup disagree", site);
  if (!self->fenced) fail("wgmma before wgmma_fence: its registers were free to change", site);
  const int thread = static_cast<int>(self->id.x) % kWarpgroup, count = 4 * p.tiles;
  auto [found, fresh] = self->sums_in_flight.try_emplace(sums);
  if (fresh) {
    found->second.values.assign(sums, sums + count);
    memset(sums, 0xFF, count * sizeof(float));
  }
  found->second.last = number;
  p.sums[thread] = found->second.values.data();
  if (fragments) memcpy(p.fragments[thread], fragments, sizeof(p.fragments[thread]));
  if (++p.deposited == kWarpgroup && !machine.copies_land_early) multiply(p);
}

// Until at most `left` of the thread's groups are under way.
inline void wait_for_products(int left, Site site) {
  std::deque<Product>& products = products_of_warpgroup();
  int end = self->products_over;
  {
    EMU_QUIET self->site = site;
    self->fenced = false;
    auto& groups = self->product_groups;
    const int done = std::max(0, static_cast<int>(groups.size()) - left);
    if (done > 0) end = groups[done - 1];
    groups.erase(groups.begin(), groups.begin() + done);
  }
  // Others go on meanwhile.
  if (machine.copies_land_early && end > self->products_over) spin();
  while (end > 0 && products[end - 1].deposited < kWarpgroup) spin();
  for (int& i = self->products_over; i < end; ++i) {
    if (machine.copies_land_early) read_operands(products[i]);
    if (!products[i].done) multiply(products[i]);
  }
  EMU_QUIET auto& flying = self->sums_in_flight;
  for (auto one = flying.begin(); one != flying.end();) {
    if (one->second.last >= end) {
      ++one;
      continue;
    }
    memcpy(one->first, one->second.values.data(), one->second.values.size() * sizeof(float));
    one = flying.erase(one);
  }
}

template <class Element>
float element_of(uint16_t bits) {
  return Fragment<Element>::get(bits, 0);
}

}  // namespace emu

namespace fd {

inline void needs_sm90a() {}
template <int kCount>
void fewer_registers() {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
}
template <int kCount>
void more_registers() {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
}

template <int kTiles>
void wgmma_fence(float (&)[kTiles][4]) {
  emu::self->fenced = true;
}
inline void wgmma_commit() { EMU_QUIET emu::self->product_groups.push_back(emu::self->products); }
template <int kLeft, int kTiles>
void wgmma_wait(float (&)[kTiles][4], EMU_SITE) {
  emu::wait_for_products(kLeft, {file, line});
}

template <class Element>
void wgmma_transposed(float (&d)[16][4], uint64_t left, uint64_t right, bool add, EMU_SITE) {
  const emu::Site site{file, line};
  emu::deposit(&d[0][0], nullptr, {site, 16, add, false, false, left, right, emu::element_of<Element>}, site);
}
template <class Element, int kTiles>
void wgmma(float (&d)[kTiles][4], const uint32_t (&left)[4], uint64_t right, EMU_SITE) {
  const emu::Site site{file, line};
  emu::deposit(&d[0][0], left, {site, kTiles, true, true, true, 0, right, emu::element_of<Element>}, site);
}

}  // namespace fd
