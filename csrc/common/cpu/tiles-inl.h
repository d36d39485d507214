// Tiles: 16 rows of 64 bytes, whole always, of which bf16 matrices are multiplied. FASTDL_TILES is 1 where
// this instruction set multiplies them: AMX in eight registers for tiles, AVX512-BF16 in vectors
// (tile_gemm-inl.h). FASTDL_TILE_REGISTERS is 1 where there are such registers, or where FASTDL_EMULATE_TILES
// asks for the same operations in plain C++ instead, as FASTDL_EMULATE_AVX512 does for AMX itself;
// FASTDL_SPLIT_TILES where moreover a vector is a tile's row, which products of fp32 by tiles need
// (split_gemm-inl.h). Included after vec-inl.h, once per instruction set: no include guard.

#undef FASTDL_TILES
#undef FASTDL_TILE_REGISTERS
#undef FASTDL_SPLIT_TILES
#if FASTDL_ISA >= FASTDL_ISA_AMX
#define FASTDL_TILE_REGISTERS 1
#elif defined(FASTDL_EMULATE_TILES) && FASTDL_ISA >= FASTDL_ISA_AVX2 && FASTDL_ISA < FASTDL_ISA_AVX512BF16
#define FASTDL_TILE_REGISTERS 1
#endif
#if FASTDL_TILE_REGISTERS || FASTDL_ISA >= FASTDL_ISA_AVX512BF16
#define FASTDL_TILES 1

constexpr int64_t kTileHeight = 16;  // of every operand; of the right one: pairs of elements along the sum
constexpr int64_t kTileDepth = 32;   // bfloat16 of a row of the left operand
#endif

#if FASTDL_TILE_REGISTERS
#if FASTDL_VEC_BYTES == 64
#define FASTDL_SPLIT_TILES 1
#endif

constexpr int kTileRegisters = 8;

#if FASTDL_ISA < FASTDL_ISA_AMX || defined(FASTDL_EMULATE_AVX512)

struct TileState {
  bool configured = false;
  uint8_t bytes[kTileRegisters][kTileHeight][64];
};
FASTDL_INLINE TileState& tile_state() {
  static thread_local TileState state;
  return state;
}
FASTDL_INLINE uint8_t (*tile(int number))[64] {
  if (!tile_state().configured) __builtin_trap();  // as the instruction does
  return tile_state().bytes[number];
}

FASTDL_INLINE void configure_tiles() {
  tile_state().configured = true;
  std::memset(tile_state().bytes, 0, sizeof(tile_state().bytes));
}
FASTDL_INLINE void release_tiles() { tile_state().configured = false; }

template <int kTile>
FASTDL_INLINE void load_tile(const void* from, int64_t row_bytes) {
  for (int64_t row = 0; row < kTileHeight; ++row)
    std::memcpy(tile(kTile)[row], static_cast<const uint8_t*>(from) + row * row_bytes, 64);
}
template <int kTile>
FASTDL_INLINE void store_tile(void* to, int64_t row_bytes) {
  for (int64_t row = 0; row < kTileHeight; ++row)
    std::memcpy(static_cast<uint8_t*>(to) + row * row_bytes, tile(kTile)[row], 64);
}
template <int kTile>
FASTDL_INLINE void zero_tile() {
  std::memset(tile(kTile), 0, sizeof(TileState::bytes[0]));
}

FASTDL_INLINE float flushed(float x) {
  return __builtin_fabsf(x) < 1.17549435e-38f ? __builtin_copysignf(0.0f, x) : x;
}

// As Intel's description of TDPBF16PS has it: even and odd elements apart, each a chain of fma from 0, then
// their sum to the accumulator; denormals are 0 in every operand and result.
static void dot_of_tiles(float (*sum)[16], const uint16_t (*left)[32], const uint16_t (*right)[32]) {
  const auto value = [](uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return flushed(x);
  };
  for (int64_t m = 0; m < kTileHeight; ++m) {
    float even[16] = {}, odd[16] = {};
    for (int64_t k = 0; k < kTileHeight; ++k) {
      const float a = value(left[m][2 * k]), b = value(left[m][2 * k + 1]);
      for (int64_t n = 0; n < 16; ++n) {
        even[n] = flushed(__builtin_fmaf(a, value(right[k][2 * n]), even[n]));
        odd[n] = flushed(__builtin_fmaf(b, value(right[k][2 * n + 1]), odd[n]));
      }
    }
    for (int64_t n = 0; n < 16; ++n) sum[m][n] = flushed(flushed(sum[m][n]) + flushed(even[n] + odd[n]));
  }
}
template <int kSum, int kLeft, int kRight>
FASTDL_INLINE void dot_tiles() {
  static_assert(kSum != kLeft && kSum != kRight && kLeft != kRight, "an invalid instruction");
  float sum[16][16];
  uint16_t left[16][32], right[16][32];
  std::memcpy(sum, tile(kSum), sizeof(sum));
  std::memcpy(left, tile(kLeft), sizeof(left));
  std::memcpy(right, tile(kRight), sizeof(right));
  dot_of_tiles(sum, left, right);
  std::memcpy(tile(kSum), sum, sizeof(sum));
}

#else

// Instructions by name: GCC 12's intrinsics say nothing of the memory they read, so that the stores before a
// load may come after it; nor do they take a tile's number from a template.

// Palette 1: every register whole. A constant: read just after it was written, it would take longer.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
constexpr TileConfig kTileConfig = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
static_assert(kTileRegisters == 8 && kTileHeight == 16, "the configuration's");

FASTDL_INLINE void configure_tiles() { asm volatile("ldtilecfg %0" : : "m"(kTileConfig) : "memory"); }
FASTDL_INLINE void release_tiles() { asm volatile("tilerelease" : : : "memory"); }

template <int kTile>
FASTDL_INLINE void load_tile(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(kTile) : "memory");
}
template <int kTile>
FASTDL_INLINE void store_tile(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "i"(kTile) : "memory");
}
template <int kTile>
FASTDL_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
// sum[16][16] (fp32) += left[16][32] right, right[k][n] being elements 2 k and 2 k + 1 of column n.
template <int kSum, int kLeft, int kRight>
FASTDL_INLINE void dot_tiles() {
  static_assert(kSum != kLeft && kSum != kRight && kLeft != kRight, "an invalid instruction");
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kLeft), "i"(kRight));
}

#endif

// A thread's tiles while it computes: whoever used them before, or will after, left or finds them released.
struct TileUse {
  TileUse() { configure_tiles(); }
  ~TileUse() { release_tiles(); }
  TileUse(const TileUse&) = delete;
  TileUse& operator=(const TileUse&) = delete;
};

#elif FASTDL_TILES

// Vectors need no preparation.
struct TileUse {
  TileUse() {}
  TileUse(const TileUse&) = delete;
  TileUse& operator=(const TileUse&) = delete;
};

#endif
