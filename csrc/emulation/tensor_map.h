// Boxes of a tensor by the copy engine, the twins of common/cuda/tensor_map.cuh: swizzled by 128 bytes, zeros
// outside of the tensor, every byte of the box announced by the barrier.
#pragma once
#include "emulation/async_copy.h"

namespace fd {

struct alignas(64) TensorMap {
  const char* first = nullptr;
  int64_t sizes[4] = {};  // columns, rows, heads, sequences
  int64_t bytes[4] = {};  // from one to the next
  int rows = 0;           // of a box
};

// What the driver refuses: no size, more than 2^32, strides that are not multiples of 16 bytes below 2^40.
inline cudaError_t make_tensor_map(TensorMap* map, const void* first, const int64_t (&sizes)[4],
                                   const int64_t (&strides)[3], int box_rows) {
  map->first = static_cast<const char*>(first), map->rows = box_rows;
  bool valid = reinterpret_cast<uintptr_t>(first) % 16 == 0 && box_rows > 0 && box_rows <= 256;
  for (int i = 0; i < 4; ++i) {
    map->sizes[i] = sizes[i];
    map->bytes[i] = i == 0 ? 2 : 2 * (sizes[i] > 1 ? strides[i - 1] : (sizes[0] + 7) / 8 * 8);
    valid &= sizes[i] > 0 && sizes[i] <= int64_t{1} << 32;
    valid &= i == 0 || (map->bytes[i] % 16 == 0 && map->bytes[i] >= 0 && map->bytes[i] < int64_t{1} << 40);
  }
  return valid ? cudaSuccess : cudaErrorInvalidValue;
}

inline void copy_box(void* to, const TensorMap& map, int column, int row, int head, int sequence, uint64_t* p,
                     EMU_SITE) {
  const unsigned address = emu::shared_address(to, {file, line});
  std::vector<emu::Copy> copies;
  {
    EMU_QUIET if (address % 1024 != 0)
        emu::fail("cp.async.bulk.tensor: the box is not on a boundary of 1024 bytes", {file, line});
    const int64_t at[4] = {column, row, head, sequence};
    for (int r = 0; r < map.rows; ++r)
      for (int chunk = 0; chunk < 8; ++chunk) {
        int64_t place[4] = {at[0] + 8 * chunk, at[1] + r, at[2], at[3]}, offset = 0;
        bool inside = true;
        for (int i = 0; i < 4; ++i) {
          inside &= place[i] >= 0 && place[i] < map.sizes[i];
          offset += place[i] * map.bytes[i];
        }
        const int64_t valid = inside ? std::min<int64_t>(8, map.sizes[0] - place[0]) : 0;
        char* chunk_to = emu::shared_chunk(emu::swizzle_128(address + 128 * r + 16 * chunk), {file, line});
        if (!chunk_to) return;
        copies.push_back({chunk_to, inside ? map.first + offset : nullptr, 16, static_cast<int>(2 * valid)});
      }
  }
  emu::begin_copies(copies, p, {file, line});
}

}  // namespace fd
