// A warp's share of weight[units, K] * value[rows, K]^T: 16 units of each of kGates gates, kTiles * 8 rows.
// Both policies give a lane the same sums, units lane / 4 (+ 8) by rows lane % 4 * 2 (+ 1), and read 16 bytes
// a load;
//   they differ in the arithmetic and in which part of a chunk of K a lane reads.
// Saves nothing.
#pragma once
#include <cstring>
#include <type_traits>

#include "common/cuda/scalar.cuh"

namespace fastdl::cuda {

constexpr int kTileUnits = 16, kTileRows = 8;

template <class T>
constexpr int kPieceElements = 16 / static_cast<int>(sizeof(T));

// mma.sync. The order of K is free, so a lane's fragments of two products are 16 bytes that lie together: no
// ldmatrix, and weights can stay in registers as they came from memory.
template <class T>
struct TensorCore {
  struct alignas(16) Piece {
    uint32_t word[4];
  };
  using Sum = float;
  static constexpr int kDepth = 4 * kPieceElements<T>;  // of K in a chunk
  static constexpr int kLines = 1;                      // rows of a tile that a lane reads

  static FD_DEVICE int depth(int lane) { return lane % 4 * kPieceElements<T>; }
  static FD_DEVICE int row(int lane, int) { return lane / 4; }
  static FD_DEVICE void multiply(Sum (&sums)[4], const Piece (&weight)[2], const Piece (&value)[kLines]) {
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      const uint32_t a[4] = {weight[0].word[k], weight[1].word[k], weight[0].word[k + 1],
                             weight[1].word[k + 1]};
      const uint32_t b[2] = {value[0].word[k], value[0].word[k + 1]};
      fd::mma<T>(sums, a, b);
    }
  }
};

// FMA in T (float or double).
template <class T>
struct Exact {
  using Piece = fd::Vector<T, kPieceElements<T>>;
  using Sum = T;
  static constexpr int kDepth = kPieceElements<T>;
  static constexpr int kLines = 2;

  static FD_DEVICE int depth(int) { return 0; }
  static FD_DEVICE int row(int lane, int line) { return lane % 4 * 2 + line; }
  static FD_DEVICE void multiply(Sum (&sums)[4], const Piece (&weight)[2], const Piece (&value)[kLines]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int k = 0; k < kDepth; ++k) sums[i] += weight[i / 2].value[k] * value[i % 2].value[k];
  }
};

template <class T>
using Multiply = std::conditional_t<sizeof(T) == 2, TensorCore<T>, Exact<T>>;
template <class T>
using Piece = typename Multiply<T>::Piece;

// line[k ...], zeros from `K` on and where there is no line. `vector`: lines and K come in whole pieces.
template <class T>
FD_DEVICE Piece<T> load_piece(const T* line, int k, int K, bool vector) {
  fd::Vector<T, kPieceElements<T>> v;
  if (line && vector && k < K) {
    v = fd::load_vector<kPieceElements<T>>(line + k);
  } else {
#pragma unroll
    for (int i = 0; i < kPieceElements<T>; ++i)
      v.value[i] = line && k + i < K ? line[k + i] : fd::from_compute<T>(0);
  }
  Piece<T> piece;
  memcpy(&piece, &v, sizeof piece);
  return piece;
}

// One row of `value`: null is a row of zeros. The mask, if there is one, is multiplied in.
template <class T>
struct Line {
  const T *value, *mask;

  FD_DEVICE Piece<T> load(int k, int K, bool vector) const {
    Piece<T> piece = load_piece(value, k, K, vector);
    if (!mask) return piece;
    Piece<T> factors = load_piece(mask, k, K, vector);
    fd::Vector<T, kPieceElements<T>> v, m;
    memcpy(&v, &piece, sizeof v);
    memcpy(&m, &factors, sizeof m);
#pragma unroll
    for (int i = 0; i < kPieceElements<T>; ++i)
      v.value[i] = fd::from_compute<T>(fd::to_compute(v.value[i]) * fd::to_compute(m.value[i]));
    memcpy(&piece, &v, sizeof v);
    return piece;
  }
};

// Rows of the weights: gate q's unit u is at data + (q * gate_units + u) * pitch.
template <class T>
struct Weight {
  const T* data;
  int64_t gate_units, pitch;
  bool vector;
};

template <class T, int kGates, int kTiles>
class WarpProduct {
 public:
  using M = Multiply<T>;
  using Sum = typename M::Sum;
  using Lines = Line<T>[kTiles][M::kLines];

  // Chunks first, first + step, ... of K. Units from `units` on count as zero.
  FD_DEVICE void add(const Weight<T>& weight, int64_t unit, int64_t units, const Lines& lines, int K,
                     int first, int step) {
    const int lane = threadIdx.x % 32;
    const int64_t own = unit + lane / 4;
    for (int k = first * M::kDepth + M::depth(lane); k - M::depth(lane) < K; k += step * M::kDepth) {
      Piece<T> value[kTiles][M::kLines];
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int line = 0; line < M::kLines; ++line)
          value[i][line] = lines[i][line].load(k, K, weight.vector);
#pragma unroll
      for (int q = 0; q < kGates; ++q) {
        Piece<T> pieces[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t u = own + half * 8;
          const T* row = weight.data + (q * weight.gate_units + u) * weight.pitch;
          pieces[half] = load_piece(u < units ? row : nullptr, k, K, weight.vector);
        }
#pragma unroll
        for (int i = 0; i < kTiles; ++i) M::multiply(sums_[q][i], pieces, value[i]);
      }
    }
  }

  // to(gate, row, unit) is where a sum goes.
  template <class To>
  FD_DEVICE void store(To to) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int q = 0; q < kGates; ++q)
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          to(q, i * kTileRows + lane % 4 * 2 + e % 2, lane / 4 + e / 2 * 8) = sums_[q][i][e];
  }

 private:
  Sum sums_[kGates][kTiles][4] = {};
};

}  // namespace fastdl::cuda
