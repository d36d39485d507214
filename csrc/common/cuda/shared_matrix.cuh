// Matrices of 16-bit elements in shared memory as wgmma reads them and tensor copies write them: columns in
// pieces of 64, a piece's rows 128 bytes each, eight rows together on a boundary of 1024 bytes, and the
// 16-byte chunks of a row permuted by its number.
#pragma once
#include "common/cuda/device.cuh"

namespace fd {

constexpr int kPieceColumns = 64, kPieceRowBytes = 128, kPieceAlignment = 1024;

// The descriptor of the matrix whose first element is at `start`, as wgmma takes it. Rows of a right or left
// matrix are its rows or columns; `leading_bytes` from one piece to the next, for rows that are longer.
FD_DEVICE uint64_t shared_matrix(const void* start, int leading_bytes = 16) {
  const auto field = [](uint64_t bytes) { return (bytes & 0x3ffff) >> 4; };
  constexpr uint64_t kSwizzle128 = 1;
  return field(shared_address(start)) | field(leading_bytes) << 16 | field(kPieceAlignment) << 32 |
         kSwizzle128 << 62;
}

// `p` or the next place where a piece may begin.
FD_DEVICE char* piece_boundary(char* p) { return p + (-shared_address(p) & (kPieceAlignment - 1)); }

}  // namespace fd
