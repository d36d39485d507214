// The recurrence of a layer, whole sequences in one launch: shapes chosen, weights and rows prepared.
// How work is split: persistent.cuh. Saves for backward what rnn.h names.
#include <map>
#include <mutex>
#include <tuple>

#include "common/cuda/divide.cuh"
#include "ops/rnn/persistent_backward.cuh"
#include "ops/rnn/persistent_forward.cuh"
#include "ops/rnn/rnn_cuda.h"
#include "ops/rnn/workspace.cuh"

namespace fastdl::cuda {
namespace {

// More rounds of clusters than this, and a launch a step fills the machine better.
constexpr int64_t kMostRounds = 4;

const char* structure_refusal(const RnnSequence& q) {
  if (!q.s.projected) return "only a projected input";
  if (q.s.layer_norm) return "no layer norm";
  if (q.s.has_projection) return "no projection";
  if (q.dtype == DType::kFloat64) return "no float64";
  if (q.H > 1024) return "hidden_size is over 1024";
  if (q.rows.T > fd::kMaxItems) return "more than 2^30 steps";
  return nullptr;
}

unsigned tiles(const RnnSequence& q) { return static_cast<unsigned>((q.rows.B + kTileRows - 1) / kTileRows); }

fd::LaunchShape launch_shape(const RnnSequence& q, const PersistentShape& s) {
  fd::LaunchShape launch;
  launch.grid = dim3(tiles(q) * s.blocks, static_cast<unsigned>(q.s.directions)),
  launch.block = dim3(s.threads);
  launch.shared_bytes = s.shared_bytes, launch.cluster = s.blocks;
  return launch;
}

// Clusters that run at once, asked once for each kernel, size and device.
template <class Kernel>
int64_t residents(Kernel kernel, const fd::LaunchShape& launch) {
  static std::mutex mutex;
  static std::map<std::tuple<Kernel, int, size_t, unsigned, unsigned>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key =
      std::make_tuple(kernel, fd::current_device(), launch.shared_bytes, launch.block.x, launch.cluster);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  return known[key] = fd::resident_clusters(kernel, launch);
}

// The first shape that fits, best first; blocks 0: none does. kernel(shape) names the kernel that would run.
template <class T, class Kernel>
PersistentShape choose(const RnnSequence& q, int gates, int value_gates, Kernel kernel) {
  const int H = static_cast<int>(q.H);
  auto fits = [&](int blocks, int most_units, bool only_registers) {
    const int units = round_up((H + blocks - 1) / blocks, kTileUnits);
    if (units > most_units) return PersistentShape{};
    const PersistentShape s = persistent_shape<T>(units, blocks, gates, value_gates);
    if (only_registers && s.chunks * gates > register_pieces(s.splits)) return PersistentShape{};
    const fd::LaunchShape launch = launch_shape(q, s);
    const int64_t clusters = int64_t{tiles(q)} * q.s.directions;
    return residents(kernel(s), launch) * kMostRounds >= clusters ? s : PersistentShape{};
  };
  // One block needs no other; else small blocks share the work of a step among most processors.
  if (const PersistentShape s = fits(1, 128, true); s.blocks) return s;
  for (int most_units : {32, 128})
    for (int blocks = 1; blocks <= 16; blocks *= 2)
      if (const PersistentShape s = fits(blocks, most_units, false); s.blocks) return s;
  return {};
}

template <class T, int kGates>
auto forward_kernel(const PersistentShape& s) {
  return s.splits == 4 ? persistent_forward_kernel<T, kGates, 4, Cluster>
                       : persistent_forward_kernel<T, kGates, 1, Cluster>;
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

int64_t rows_bytes(const RnnSequence& q) { return q.rows.batch_sizes ? (q.rows.T + 1) * 8 : 0; }

// Packed rows travel as kernel arguments: no copy from pageable memory, so a CUDA graph can hold it.
cudaError_t prepare(const RnnSequence& q, char* memory, PersistentRows& rows, cudaStream_t stream) {
  rows = {q.rows.T, q.rows.row_t, q.rows.row_b, nullptr};
  if (!q.rows.batch_sizes) return cudaSuccess;
  int64_t* row_offset = reinterpret_cast<int64_t*>(memory);
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

template <class T, int kGates>
PersistentShape forward_shape(const RnnSequence& q) {
  return choose<T>(q, kGates, 1, forward_kernel<T, kGates>);
}

template <class T, int kGates>
auto backward_kernel(const PersistentShape& s) {
  return s.splits == 4 ? persistent_backward_kernel<T, kGates, 4, Cluster>
                       : persistent_backward_kernel<T, kGates, 1, Cluster>;
}
template <class T, int kGates>
PersistentShape backward_shape(const RnnSequence& q) {
  return choose<T>(q, 1, kGates, backward_kernel<T, kGates>);
}

// shape(value of the element type, gates as a constant) is what would run.
template <class Shape>
const char* refusal_of(const RnnSequence& q, Shape shape) {
  if (const char* refusal = structure_refusal(q)) return refusal;
  if (q.rows.B == 0 || q.H == 0) return nullptr;
  const cudaError_t error = with_cell(q, [&](auto element, auto gates) {
    return shape(element, gates).blocks ? cudaSuccess : cudaErrorNotSupported;
  });
  return error == cudaSuccess
             ? nullptr
             : "the recurrent weights do not fit into a cluster, or the batch takes too many of them";
}

template <class T>
Piece<T>* take_packed(const RnnSequence& q, const PersistentShape& s, int gates, Workspace& memory) {
  return memory.take<Piece<T>>(q.s.directions * packed_pieces<T>(s, gates));
}

}  // namespace

const char* rnn_persistent_forward_refusal(const RnnForward& p) {
  return refusal_of(p.q, [&](auto element, auto gates) {
    return forward_shape<decltype(element), decltype(gates)::value>(p.q);
  });
}

int64_t rnn_persistent_forward_workspace(const RnnForward& p) {
  Workspace memory(nullptr);
  memory.take<char>(rows_bytes(p.q));
  with_cell(p.q, [&](auto element, auto gates) {
    using T = decltype(element);
    constexpr int kGates = decltype(gates)::value;
    take_packed<T>(p.q, forward_shape<T, kGates>(p.q), kGates, memory);
    return cudaSuccess;
  });
  return memory.bytes();
}

cudaError_t rnn_persistent_forward(const RnnForward& p, void* workspace, cudaStream_t stream) {
  if (structure_refusal(p.q)) return cudaErrorNotSupported;
  if (p.q.rows.B == 0 || p.q.H == 0) return cudaSuccess;
  return with_cell(p.q, [&](auto element, auto gates) {
    using T = decltype(element);
    constexpr int kGates = decltype(gates)::value;
    PersistentForward<T> f{p, forward_shape<T, kGates>(p.q), {}, nullptr};
    if (!f.shape.blocks) return cudaErrorNotSupported;
    Workspace memory(workspace);
    cudaError_t error = prepare(p.q, memory.take<char>(rows_bytes(p.q)), f.rows, stream);
    Piece<T>* packed = take_packed<T>(p.q, f.shape, kGates, memory);
    if (error == cudaSuccess) error = pack_weights<T, false>(p.q, f.shape, packed, stream);
    if (error != cudaSuccess) return error;
    f.packed = packed;
    return fd::launch(forward_kernel<T, kGates>(f.shape), launch_shape(p.q, f.shape), stream, f);
  });
}

const char* rnn_persistent_backward_refusal(const RnnBackward& p) {
  return refusal_of(p.q, [&](auto element, auto gates) {
    return backward_shape<decltype(element), decltype(gates)::value>(p.q);
  });
}

int64_t rnn_persistent_backward_workspace(const RnnBackward& p) {
  Workspace memory(nullptr);
  memory.take<char>(rows_bytes(p.q));
  with_cell(p.q, [&](auto element, auto gates) {
    using T = decltype(element);
    take_packed<T>(p.q, backward_shape<T, decltype(gates)::value>(p.q), 1, memory);
    return cudaSuccess;
  });
  return memory.bytes();
}

cudaError_t rnn_persistent_backward(const RnnBackward& p, void* workspace, cudaStream_t stream) {
  if (structure_refusal(p.q)) return cudaErrorNotSupported;
  if (p.q.rows.B == 0 || p.q.H == 0) return cudaSuccess;
  return with_cell(p.q, [&](auto element, auto gates) {
    using T = decltype(element);
    constexpr int kGates = decltype(gates)::value;
    PersistentBackward<T> f{p, backward_shape<T, kGates>(p.q), {}, nullptr};
    if (!f.shape.blocks) return cudaErrorNotSupported;
    Workspace memory(workspace);
    cudaError_t error = prepare(p.q, memory.take<char>(rows_bytes(p.q)), f.rows, stream);
    Piece<T>* packed = take_packed<T>(p.q, f.shape, 1, memory);
    if (error == cudaSuccess) error = pack_weights<T, true>(p.q, f.shape, packed, stream);
    if (error != cudaSuccess) return error;
    f.packed = packed;
    return fd::launch(backward_kernel<T, kGates>(f.shape), launch_shape(p.q, f.shape), stream, f);
  });
}

}  // namespace fastdl::cuda
