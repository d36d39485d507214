// The host's side of the persistent kernels, the same for both passes and both kinds of groups: what they
// refuse, the workspace, rows and weights prepared, launches.
// Packed rows go to the device by kernels of one block; the rest: persistent_pack.cuh.
// Saves nothing.
#pragma once
#include "ops/rnn/persistent_backward.cuh"
#include "ops/rnn/persistent_choice.cuh"
#include "ops/rnn/persistent_forward.cuh"
#include "ops/rnn/workspace.cuh"

namespace fastdl::cuda {
namespace {

const char* structure_refusal(const RnnSequence& q) {
  if (!q.s.projected) return "only a projected input";
  if (q.s.layer_norm) return "no layer norm";
  if (q.s.has_projection) return "no projection";
  if (q.dtype == DType::kFloat64) return "no float64";
  if (q.H > 1024) return "hidden_size is over 1024";
  if (q.rows.T > fd::kMaxItems) return "more than 2^30 steps";
  return nullptr;
}

constexpr int kUploadCount = 448;
struct Upload {
  int64_t value[kUploadCount];
  int64_t* to;
  int64_t count;
};
__global__ void __launch_bounds__(kUploadCount) upload_kernel(const __grid_constant__ Upload u) {
  if (threadIdx.x < u.count) u.to[threadIdx.x] = u.value[threadIdx.x];
}

// Packed rows travel as kernel arguments: no copy from pageable memory, so a CUDA graph can hold it.
cudaError_t prepare(const RnnSequence& q, int64_t* row_offset, PersistentRows& rows, cudaStream_t stream) {
  rows = {q.rows.T, q.rows.row_t, q.rows.row_b, nullptr};
  if (!q.rows.batch_sizes) return cudaSuccess;
  rows.row_offset = row_offset;
  for (int64_t first = 0; first <= q.rows.T; first += kUploadCount) {
    Upload u{{}, row_offset + first, std::min<int64_t>(kUploadCount, q.rows.T + 1 - first)};
    for (int64_t i = 0; i < u.count; ++i)
      u.value[i] = first + i < q.rows.T ? q.rows.row_offset[first + i] : q.rows.count;
    const cudaError_t error = fd::launch(upload_kernel, {dim3(1), dim3(kUploadCount)}, stream, u);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// f(value of the element type, gates as a constant) for the types and cells there are kernels of.
template <class F>
cudaError_t with_cell(const RnnSequence& q, F f) {
  auto with_gates = [&](auto element) {
    switch (num_gates(q.s.cell)) {
      case 4:
        return f(element, std::integral_constant<int, 4>());
      case 3:
        return f(element, std::integral_constant<int, 3>());
      default:
        return f(element, std::integral_constant<int, 1>());
    }
  };
  switch (q.dtype) {
    case DType::kFloat32:
      return with_gates(float{});
    case DType::kFloat16:
      return with_gates(__half{});
    case DType::kBFloat16:
      return with_gates(__nv_bfloat16{});
    default:
      return cudaErrorNotSupported;
  }
}

// What forward and backward differ in.
template <class P>
struct Pass;
template <>
struct Pass<RnnForward> {
  template <class T>
  using Arguments = PersistentForward<T>;
  static constexpr bool kTurned = false;
  static constexpr int product_gates(int gates) { return gates; }
  static constexpr int value_gates(int) { return 1; }
  template <class T, int kGates, int kSplits, class Group>
  static constexpr auto kernel = persistent_forward_kernel<T, kGates, kSplits, Group>;
};
template <>
struct Pass<RnnBackward> {
  template <class T>
  using Arguments = PersistentBackward<T>;
  static constexpr bool kTurned = true;
  static constexpr int product_gates(int) { return 1; }
  static constexpr int value_gates(int gates) { return gates; }
  template <class T, int kGates, int kSplits, class Group>
  static constexpr auto kernel = persistent_backward_kernel<T, kGates, kSplits, Group>;
};

template <class P, class T, int kGates, class Group>
auto kernel_of(const PersistentShape& s) {
  using Kernels = Pass<P>;
  if constexpr (std::is_same_v<Group, Cluster>)
    if (s.splits == 1) return Kernels::template kernel<T, kGates, 1, Group>;
  return Kernels::template kernel<T, kGates, 4, Group>;
}

template <class T, int kGates, class Group, class P>
PersistentShape shape_of(const P& p) {
  return choose<T>(Group{}, p.q, Pass<P>::product_gates(kGates), Pass<P>::value_gates(kGates),
                   kernel_of<P, T, kGates, Group>);
}

template <class Group, class P>
const char* refusal(const P& p, const char* too_large) {
  if (const char* refusal = structure_refusal(p.q)) return refusal;
  if (p.q.rows.B == 0 || p.q.H == 0) return nullptr;
  const cudaError_t error = with_cell(p.q, [&](auto element, auto gates) {
    return shape_of<decltype(element), decltype(gates)::value, Group>(p).blocks ? cudaSuccess
                                                                                : cudaErrorNotSupported;
  });
  return error == cudaSuccess ? nullptr : too_large;
}

// The arrays of the workspace.
template <class T, class Group>
struct PersistentArrays {
  int64_t* row_offset;
  Piece<T>* packed;
  PersistentGroups<T> groups;
  int64_t arrivals = 0;

  PersistentArrays(const RnnSequence& q, const PersistentShape& s, int gates, Workspace& memory)
      : row_offset(memory.take<int64_t>(q.rows.batch_sizes ? q.rows.T + 1 : 0)),
        packed(memory.take<Piece<T>>(q.s.directions * packed_pieces<T>(s, gates))),
        groups{0, nullptr, nullptr} {
    if (std::is_same_v<Group, Cluster>) return;
    const int64_t count = q.s.directions * tiles(q);
    groups.values = memory.take<T>(count * 2 * kTileRows * s.depth);
    groups.arrivals = memory.take<unsigned>(arrivals = count * kArrivalStride);
  }
};

template <class Group, class P>
int64_t workspace_of(const P& p) {
  if (p.q.rows.B == 0 || p.q.H == 0) return 0;
  Workspace memory(nullptr);
  with_cell(p.q, [&](auto element, auto gates) {
    using T = decltype(element);
    constexpr int kGates = decltype(gates)::value;
    PersistentArrays<T, Group>(p.q, shape_of<T, kGates, Group>(p), Pass<P>::product_gates(kGates), memory);
    return cudaSuccess;
  });
  return memory.bytes();
}

// One launch after another where not all groups run at once.
template <class Group, class P>
cudaError_t enqueue(const P& p, void* workspace, cudaStream_t stream) {
  if (structure_refusal(p.q)) return cudaErrorNotSupported;
  if (p.q.rows.B == 0 || p.q.H == 0) return cudaSuccess;
  return with_cell(p.q, [&](auto element, auto gates) {
    using T = decltype(element);
    constexpr int kGates = decltype(gates)::value;
    const PersistentShape s = shape_of<T, kGates, Group>(p);
    if (!s.blocks) return cudaErrorNotSupported;
    Workspace memory(workspace);
    const PersistentArrays<T, Group> arrays(p.q, s, Pass<P>::product_gates(kGates), memory);
    typename Pass<P>::template Arguments<T> f{p, s, {}, arrays.packed, arrays.groups};
    cudaError_t error = prepare(p.q, arrays.row_offset, f.rows, stream);
    if (error == cudaSuccess) error = pack_weights<T, Pass<P>::kTurned>(p.q, s, arrays.packed, stream);
    if (error == cudaSuccess && arrays.arrivals)
      error = fd::set_zero(f.groups.arrivals, arrays.arrivals * sizeof(unsigned), stream);
    for (int64_t& first = f.groups.first_tile; error == cudaSuccess && first < tiles(p.q); first += s.tiles)
      error =
          fd::launch(kernel_of<P, T, kGates, Group>(s),
                     launch_shape<Group>(p.q, s, std::min<int64_t>(s.tiles, tiles(p.q) - first)), stream, f);
    return error;
  });
}

}  // namespace
}  // namespace fastdl::cuda
