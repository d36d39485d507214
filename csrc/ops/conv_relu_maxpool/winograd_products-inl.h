// From staged rows to products: V = B^T d B of every tile of a group, then M = V U for each position.
// One group per call, on the calling thread, everything in its cache. Saves nothing.

// Vectors of output channels whose M is held at once: 64 channels, so that V[position] is read again from L1.
constexpr int kPassVecs = 64 / kLanes < kGemmVecs ? kGemmVecs : 64 / kLanes;

// V and M of a pass, in bytes: with U they share an L2 of 1 to 2 MB.
constexpr int64_t kGroupBytes = 512 << 10;

// Floats that keep strides off the multiples of 4096 bytes, which all fall into one set of L1.
constexpr int64_t kStridePadding = 16;

// Floats between the positions of v, of u in a panel, and between the tiles of m.
FASTDL_INLINE int64_t position_stride(int64_t tiles, int64_t channels) {
  return tiles * channels + kStridePadding;
}
FASTDL_INLINE int64_t weight_stride(int64_t C, int64_t width) { return C * width + kStridePadding; }
FASTDL_INLINE int64_t tile_stride(int64_t positions) { return positions * kLanes + kStridePadding; }

// to [positions][tiles][channels] = kTransform of every tile of the staged pixels
template <void (*kTransform)(const float* from, int64_t row, int64_t pixel, float* to, int64_t stride)>
void transform_tiles(const float* staged, const WinogradGroup& group, const StagedSize& size, float* to) {
  const int64_t stride = position_stride(group.tiles(), size.channels);
  for (int64_t i = 0; i < group.images; ++i)
    for (int64_t y = 0; y < group.rows; ++y)
      for (int64_t x = 0; x < group.cols; ++x) {
        const float* tile = staged + i * size.image() + group.tile * (y * size.row() + x * size.channels);
        for (int64_t c = 0; c < size.channels; c += kLanes)
          kTransform(tile + c, size.row(), size.channels, to + c, stride);
        to += size.channels;
      }
}

// u [panels][positions][C][width], panels of kGemmWidth output channels, the last one of the vectors that
// remain.
FASTDL_INLINE int64_t packed_panel(int64_t first_vec, int64_t C, int64_t positions) {
  return first_vec / kGemmVecs * positions * weight_stride(C, kGemmWidth);
}

// m [vecs][tiles][positions][kLanes] for the output channels from vector `first_vec` on; first_vec is a
// multiple of kGemmVecs. Meanwhile asks for what is read and written next.
static void multiply(const float* v, const float* u, float* m, int64_t positions, int64_t tiles, int64_t C,
                     int64_t channels, int64_t first_vec, int64_t vecs, const Reads& reads,
                     const Footprint& writes) {
  const int64_t m_tile = tile_stride(positions);
  Prefetch<false> read(reads.first, positions), read_second(reads.second, positions);
  Prefetch<true> write(writes, positions);
  for (int64_t p = 0; p < positions; ++p) {
    read.step();
    read_second.step();
    write.step();
    for (int64_t j = 0; j < vecs; j += kGemmVecs) {
      const int64_t panel_vecs = vecs - j < kGemmVecs ? vecs - j : kGemmVecs, width = panel_vecs * kLanes;
      const GemmStrides strides = {channels, 1, width, m_tile, tiles * m_tile};
      gemm(false, tiles, panel_vecs, v + p * position_stride(tiles, channels),
           u + packed_panel(first_vec + j, C, positions) + p * weight_stride(C, width),
           m + j * tiles * m_tile + p * kLanes, C, strides);
    }
  }
}
