// A whole sequence in one launch: what forward and backward share. A group of blocks, a cluster or a part of
// a
//   cooperative grid, owns eight sequences of one direction and all recurrent weights; a block owns `units`
//   hidden units, and its weights stay in registers, or in shared memory where those are full, from the first
//   step to the last.
// A warp owns 16 units and every kSplits-th chunk of K; the values of a step, h or the gradient of the gates,
//   lie in every block's shared memory, and each block sends its units' to the others of its group: one
//   meeting a step (persistent_exchange.cuh).
// Saves nothing itself.
#pragma once
#include "ops/rnn/cell.cuh"
#include "ops/rnn/product.cuh"
#include "ops/rnn/step_rows.cuh"

namespace fastdl::cuda {

constexpr int kPersistentThreads = 256;
// Pairs of pieces a thread keeps in registers: 128 of its 255, fewer where it makes four rows after each
// product.
constexpr int register_pieces(int splits) { return splits == 4 ? 16 : 11; }

// What a launch is made of. Units: of a block; blocks: of a group; K: of the product, as it lies in shared
// memory.
// Without padding: gcc 12 clears the wrong bytes of a copy that a lambda holds (-ftrivial-auto-var-init).
struct PersistentShape {
  int units, blocks, splits, threads;
  int buffers;  // of values, in shared memory
  int tiles;    // of eight sequences, that one launch takes
  int depth;    // K padded: whole units of every block
  int chunks;   // of K, a warp
  int pitch;    // of a row of values
  int shared_bytes;
};

template <class T>
constexpr bool kOnTensorCore = sizeof(T) == 2;
// FMA reads its weights from shared memory, where four lanes share a piece.
template <class T>
constexpr int register_chunks(int gates, int splits) {
  return kOnTensorCore<T> ? register_pieces(splits) / gates : 0;
}
template <class T>
constexpr int kPieceLanes = kOnTensorCore<T> ? 32 : 8;

constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

// units: of a block, a multiple of 16. gates: of the product a warp makes; value_gates: of the values it
// reads.
template <class T>
PersistentShape persistent_shape(int units, int blocks, int gates, int value_gates, int buffers) {
  using M = Multiply<T>;
  PersistentShape s{};
  s.units = units, s.blocks = blocks, s.splits = units <= 32 ? 4 : 1;
  s.threads = 2 * units * s.splits, s.buffers = buffers;
  s.depth = value_gates * units * blocks;
  s.chunks = round_up(s.depth, M::kDepth * s.splits) / (M::kDepth * s.splits);
  // Eight lanes that read at once touch every bank once: tensor cores read two rows of 64 bytes, FMA four
  // rows at one place.
  const int element = sizeof(T), line = kOnTensorCore<T> ? 64 : 16;
  s.pitch = (round_up(s.chunks * s.splits * M::kDepth * element, 128) + line) / element;
  const int in_registers = register_chunks<T>(gates, s.splits);
  const int shared_chunks = s.chunks > in_registers ? s.chunks - in_registers : 0;
  const int sum = sizeof(typename M::Sum);
  s.shared_bytes = buffers * kTileRows * s.pitch * element +
                   s.splits * gates * kTileRows * (units + 4) * sum +
                   s.threads / 32 * shared_chunks * gates * 2 * kPieceLanes<T> * 16;
  return s;
}

// The block's shared memory.
template <class T>
struct PersistentMemory {
  using Sum = typename Multiply<T>::Sum;
  T* values;          // [buffers][8][pitch]
  Sum* sums;          // [splits][gates][8][units + 4]
  Piece<T>* weights;  // [warp][chunk][gate][half][lane]

  FD_DEVICE PersistentMemory(void* memory, const PersistentShape& s, int gates) {
    values = static_cast<T*>(memory);
    sums = reinterpret_cast<Sum*>(values + s.buffers * kTileRows * s.pitch);
    weights = reinterpret_cast<Piece<T>*>(sums + s.splits * gates * kTileRows * (s.units + 4));
  }
};

// The weights of a warp's 16 units, and their product with eight rows of values.
template <class T, int kGates, int kSplits>
class Resident {
 public:
  using M = Multiply<T>;
  using Sum = typename M::Sum;

  // packed: of this block (persistent_pack.cuh).
  FD_DEVICE Resident(const PersistentShape& s, const PersistentMemory<T>& memory, const Piece<T>* packed)
      : s_(s), memory_(memory), lane_(threadIdx.x % 32), warp_(threadIdx.x / 32) {
    const Piece<T>* from = packed + warp_ * s.chunks * kChunkPieces;
    own_ = memory.weights + warp_ * shared_chunks() * kChunkPieces;
#pragma unroll
    for (int c = 0; c < kInRegisters; ++c)
#pragma unroll
      for (int q = 0; q < kGates; ++q)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          held_[c][q][half] = Piece<T>{};
          if (c < s.chunks)
            held_[c][q][half] = from[c * kChunkPieces + (q * 2 + half) * kPieceLanes<T> + lane()];
        }
    for (int i = lane_; i < shared_chunks() * kChunkPieces; i += 32)
      own_[i] = from[kInRegisters * kChunkPieces + i];
  }

  // The sums of this warp's share of K go to memory.sums.
  FD_DEVICE void multiply(const T* values) const {
    Sum sums[kGates][kChains][4] = {};
#pragma unroll
    for (int c = 0; c < kInRegisters; ++c)
      if (c < s_.chunks) {
        Piece<T> value[M::kLines];
        load(values, c, value);
#pragma unroll
        for (int q = 0; q < kGates; ++q) M::multiply(sums[q][c % kChains], held_[c][q], value);
      }
    for (int c = 0; c < shared_chunks(); ++c) {
      Piece<T> value[M::kLines];
      load(values, kInRegisters + c, value);
#pragma unroll
      for (int q = 0; q < kGates; ++q) {
        const Piece<T>* from = own_ + c * kChunkPieces + q * 2 * kPieceLanes<T> + lane();
        const Piece<T> weight[2] = {from[0], from[kPieceLanes<T>]};
        M::multiply(sums[q][0], weight, value);
      }
    }
    const int first = warp_ / kSplits * kTileUnits + lane_ / 4, split = warp_ % kSplits;
#pragma unroll
    for (int q = 0; q < kGates; ++q)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        Sum sum = sums[q][0][e];
#pragma unroll
        for (int chain = 1; chain < kChains; ++chain) sum += sums[q][chain][e];
        const int row = lane_ % 4 * 2 + e % 2, unit = first + e / 2 * 8;
        memory_.sums[((split * kGates + q) * kTileRows + row) * (s_.units + 4) + unit] = sum;
      }
  }

  // What all splits found for one row and unit, in a fixed order.
  FD_DEVICE Sum total(int q, int row, int unit) const {
    Sum sum = 0;
#pragma unroll
    for (int split = 0; split < kSplits; ++split)
      sum += memory_.sums[((split * kGates + q) * kTileRows + row) * (s_.units + 4) + unit];
    return sum;
  }

 private:
  static constexpr int kInRegisters = register_chunks<T>(kGates, kSplits);
  static constexpr int kChunkPieces = kGates * 2 * kPieceLanes<T>;
  // A chain of dependent products is as long as K; several halve the wait.
  static constexpr int kChains = kOnTensorCore<T> && kGates == 1 ? 4 : 1;

  FD_DEVICE int shared_chunks() const { return s_.chunks > kInRegisters ? s_.chunks - kInRegisters : 0; }
  FD_DEVICE int lane() const { return kOnTensorCore<T> ? lane_ : lane_ / 4; }
  // Of K: where this lane's piece of the warp's chunk c begins.
  FD_DEVICE int depth(int c) const { return (c * kSplits + warp_ % kSplits) * M::kDepth + M::depth(lane_); }
  FD_DEVICE void load(const T* values, int c, Piece<T> (&value)[M::kLines]) const {
#pragma unroll
    for (int line = 0; line < M::kLines; ++line)
      value[line] = *reinterpret_cast<const Piece<T>*>(values + M::row(lane_, line) * s_.pitch + depth(c));
  }

  const PersistentShape& s_;
  const PersistentMemory<T>& memory_;
  const int lane_, warp_;
  Piece<T>* own_;
  Piece<T> held_[kInRegisters > 0 ? kInRegisters : 1][kGates][2];
};

// Which sequence and unit a thread owns: one unit of 4 / kSplits rows.
struct PersistentPlace {
  int d, rank, unit;   // unit: of the block
  int64_t first_b, j;  // j: of the layer
  int row, row_step;

  static FD_DEVICE PersistentPlace of(const PersistentShape& s, int64_t first_tile) {
    PersistentPlace p;
    p.d = blockIdx.y, p.rank = blockIdx.x % s.blocks;
    p.first_b = (first_tile + blockIdx.x / s.blocks) * kTileRows;
    p.unit = threadIdx.x % s.units, p.j = int64_t{p.rank} * s.units + p.unit;
    p.row = threadIdx.x / s.units, p.row_step = s.threads / s.units;
    return p;
  }
};

// The steps on the device: dense, or packed by row_offset [T + 1].
struct PersistentRows {
  int64_t T, row_t, row_b;
  const int64_t* row_offset;

  FD_DEVICE int64_t row(int64_t t, int64_t b) const {
    return row_offset ? row_offset[t] + b : t * row_t + b * row_b;
  }
  FD_DEVICE int64_t count(int64_t t) const { return row_offset[t + 1] - row_offset[t]; }
  // Steps that sequence b has rows in.
  FD_DEVICE int64_t rows_of(int64_t b) const {
    if (!row_offset) return T;
    int64_t low = 0, high = T;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (count(middle) > b)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

}  // namespace fastdl::cuda
