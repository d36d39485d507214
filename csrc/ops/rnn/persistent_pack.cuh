// Recurrent weights in the order in which the persistent kernels read them: a warp's piece of 16 bytes a
// lane, one
//   after another. Also turns them for backward, and pads units and K.
// A thread makes one piece. Grid (ceil(pieces / 256), directions).
// Saves nothing.
#pragma once
#include "ops/rnn/persistent.cuh"

namespace fastdl::cuda {

// Pieces of all blocks of a cluster; gates: of the product.
template <class T>
__host__ __device__ int64_t packed_pieces(const PersistentShape& s, int gates) {
  return int64_t{s.blocks} * (s.threads / 32) * s.chunks * gates * 2 * kPieceLanes<T>;
}

template <class T>
struct PackWeights {
  const T* weight[2];  // by direction: [G * H, H]
  Piece<T>* packed;    // [direction][pieces]
  PersistentShape shape;
  int64_t pieces;
  int H, gates;
};

// kTurned: of the product with the transpose, one gate of K = all gates. Else K is the units.
template <class T, bool kTurned>
__global__ void __launch_bounds__(256) pack_weights_kernel(const __grid_constant__ PackWeights<T> p) {
  using M = Multiply<T>;
  constexpr int kLanes = kPieceLanes<T>, kLaneStep = 32 / kLanes;
  const int64_t piece = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (piece >= p.pieces) return;
  const PersistentShape& s = p.shape;
  const int gates = kTurned ? 1 : p.gates, warps = s.threads / 32;
  int64_t rest = piece / kLanes;
  const int lane = static_cast<int>(piece % kLanes) * kLaneStep;
  const int half = static_cast<int>(rest % 2);
  rest /= 2;
  const int gate = static_cast<int>(rest % gates);
  rest /= gates;
  const int chunk = static_cast<int>(rest % s.chunks);
  rest /= s.chunks;
  const int warp = static_cast<int>(rest % warps), block = static_cast<int>(rest / warps);
  const int unit = block * s.units + warp / s.splits * kTileUnits + lane / 4 + half * 8;
  const int k = (chunk * s.splits + warp % s.splits) * M::kDepth + M::depth(lane);
  const T* weight = p.weight[blockIdx.y];
  fd::Vector<T, kPieceElements<T>> v;
#pragma unroll
  for (int i = 0; i < kPieceElements<T>; ++i) {
    const int padded = s.units * s.blocks;
    const int row_gate = kTurned ? (k + i) / padded : gate, row = kTurned ? (k + i) % padded : unit;
    const int column = kTurned ? unit : k + i;
    v.value[i] = row_gate < p.gates && row < p.H && column < p.H
                     ? weight[(int64_t{row_gate} * p.H + row) * p.H + column]
                     : fd::from_compute<T>(0);
  }
  memcpy(p.packed + blockIdx.y * p.pieces + piece, &v, sizeof v);
}

template <class T, bool kTurned>
cudaError_t pack_weights(const RnnSequence& q, const PersistentShape& shape, Piece<T>* packed,
                         cudaStream_t stream) {
  PackWeights<T> p{{},
                   packed,
                   shape,
                   packed_pieces<T>(shape, kTurned ? 1 : num_gates(q.s.cell)),
                   static_cast<int>(q.H),
                   num_gates(q.s.cell)};
  for (int64_t d = 0; d < q.s.directions; ++d) p.weight[d] = static_cast<const T*>(q.weights[d].weight_hh);
  const dim3 grid(static_cast<unsigned>((p.pieces + 255) / 256), static_cast<unsigned>(q.s.directions));
  return fd::launch(pack_weights_kernel<T, kTurned>, {grid, dim3(256)}, stream, p);
}

}  // namespace fastdl::cuda
