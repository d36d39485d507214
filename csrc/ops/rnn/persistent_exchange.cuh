// How the blocks that share sequences hand each other a step's values, and meet.
// Lanes move 16 bytes at a time; in the end every block has all values in its own shared memory.
// Saves nothing.
#pragma once
#include "ops/rnn/persistent.cuh"

namespace fastdl::cuda {

// In a cluster: each block stores into the others' shared memory; one cluster barrier a step.
struct Cluster {
  // Of values: the others store into one while this block still reads the other.
  static constexpr int kBuffers = 2;

  template <class T>
  class Exchange {
   public:
    FD_DEVICE Exchange(const PersistentShape& s, const PersistentPlace& own) : s_(s), rank_(own.rank) {}

    // Every block has started, and zeroed what the others write to.
    FD_DEVICE void begin() const { fd::cluster_sync(); }

    // Sends this block's units of `values` [8][pitch], of each of `gates` parts, to the other blocks. From
    // here to await() nothing of shared memory may be written.
    FD_DEVICE void send(T* values, int gates) const {
      constexpr int kElements = kPieceElements<T>;
      __syncthreads();
      if (s_.blocks == 1) return;
      // Four lanes a row; a warp serves every (threads / 32)-th block.
      const int lane = threadIdx.x % 32, first = lane % 4 * kElements;
      T* row = values + lane / 4 * s_.pitch + rank_ * s_.units;
      for (int other = threadIdx.x / 32 + 1; other < s_.blocks; other += s_.threads / 32) {
        T* to = fd::cluster_map(row, (rank_ + other) & (s_.blocks - 1));
        for (int gate = 0; gate < gates; ++gate)
          for (int k = first; k < s_.units; k += 4 * kElements) {
            const int at = gate * s_.units * s_.blocks + k;
            *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(row + at);
          }
      }
      fd::cluster_arrive();
    }

    // The others' units are in `values`.
    FD_DEVICE void await(T*) const {
      if (s_.blocks > 1) fd::cluster_wait();
    }

   private:
    const PersistentShape& s_;
    const int rank_;
  };
};

}  // namespace fastdl::cuda
