// How the blocks that share sequences hand each other a step's values, and meet.
// Lanes move 16 bytes at a time; in the end every block has all values in its own shared memory.
// Saves nothing.
#pragma once
#include "ops/rnn/persistent.cuh"

namespace fastdl::cuda {

// The groups of a launch. values, arrivals: of a grid, for all groups; null in clusters.
template <class T>
struct PersistentGroups {
  int64_t first_tile;  // of eight sequences, this launch's
  T* values;           // [tile][direction][2][8][depth]
  unsigned* arrivals;  // [tile][direction][kArrivalStride], zero
};
// A counter has a line of the cache to itself.
constexpr int kArrivalStride = 32;

// In a cluster: each block stores into the others' shared memory; one cluster barrier a step.
struct Cluster {
  // Of values: the others store into one while this block still reads the other.
  static constexpr int kBuffers = 2;

  template <class T>
  class Exchange {
   public:
    FD_DEVICE Exchange(const PersistentShape& s, const PersistentPlace& own, const PersistentGroups<T>&)
        : s_(s), rank_(own.rank) {}

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

// In a cooperative grid, whose blocks are all resident: by global memory, two buffers by turns. Each group
// counts its blocks' arrivals in a counter of its own, so groups do not wait for each other. A block that
// sends step i + 2 has seen all arrive with step i + 1, and they had read step i before.
struct Grid {
  // Of values: only await() writes others' units, when this block has read the old ones.
  static constexpr int kBuffers = 1;

  template <class T>
  class Exchange {
   public:
    FD_DEVICE Exchange(const PersistentShape& s, const PersistentPlace& own,
                       const PersistentGroups<T>& groups)
        : s_(s), first_(own.rank * s.units), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {
      const int64_t group = own.first_b / kTileRows * gridDim.y + own.d;
      values_ = groups.values + group * 2 * kTileRows * s.depth;
      arrivals_ = groups.arrivals + group * kArrivalStride;
    }

    FD_DEVICE void begin() const { __syncthreads(); }

    FD_DEVICE void send(const T* values, int gates) {
      __syncthreads();
      if (s_.blocks == 1) return;
      // Four lanes a row, a warp a gate.
      const int row = lane_ / 4;
      T* to = buffer() + row * s_.depth + first_;
      const T* from = values + row * s_.pitch + first_;
      for (int gate = warp_; gate < gates; gate += s_.threads / 32)
        for (int k = lane_ % 4 * kElements; k < s_.units; k += 4 * kElements) {
          const int at = gate * s_.units * s_.blocks + k;
          *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(from + at);
        }
      __syncthreads();
      if (threadIdx.x == 0) fd::add_release(arrivals_, 1u);
    }

    FD_DEVICE void await(T* values) {
      if (s_.blocks == 1) return;
      const T* from = buffer();
      ++step_;
      // The counter may wrap around.
      if (threadIdx.x == 0)
        while (static_cast<int>(fd::ld_acquire(arrivals_) - step_ * s_.blocks) < 0) fd::spin();
      __syncthreads();
      for (int row = warp_; row < kTileRows; row += s_.threads / 32)
        for (int k = lane_ * kElements; k < s_.depth; k += 32 * kElements)
          fd::cp_async16(values + row * s_.pitch + k, from + row * s_.depth + k);
      fd::cp_async_commit();
      fd::cp_async_wait<0>();
      __syncthreads();
    }

   private:
    static constexpr int kElements = kPieceElements<T>;
    FD_DEVICE T* buffer() const { return values_ + step_ % 2 * kTileRows * s_.depth; }

    const PersistentShape& s_;
    const int first_, warp_, lane_;
    T* values_;
    unsigned* arrivals_;
    unsigned step_ = 0;
  };
};

}  // namespace fastdl::cuda
