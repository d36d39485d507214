// The recurrence of a layer, a few launches a step, for every structure: steps, jobs and workspaces put
// together. How work is split: step_product.cuh, norm_forward.cuh, norm_backward.cuh. Both directions of a
// step share a launch. Saves for backward what rnn.h names.
#include "ops/rnn/norm_backward.cuh"
#include "ops/rnn/norm_forward.cuh"
#include "ops/rnn/rnn_cuda.h"
#include "ops/rnn/workspace.cuh"

namespace fastdl::cuda {
namespace {

// Rows of `width` elements that are read 16 bytes at once.
bool whole_pieces(const void* data, int64_t width, size_t element) {
  return fd::aligned(data, 16) && width * element % 16 == 0;
}

dim3 elementwise_grid(const RnnSequence& q) {
  const int64_t elements = q.s.directions * q.rows.B * (q.H > q.R ? q.H : q.R);
  return dim3(static_cast<unsigned>(elements < 1024 * 256 ? (elements + 255) / 256 : 1024));
}

template <class T>
ForwardStep<T> forward_step(const RnnForward& p, Workspace& memory) {
  const RnnSequence& q = p.q;
  ForwardStep<T> f{};
  f.p = p;
  if (q.s.layer_norm)
    f.product = memory.take<fd::Compute<T>>(q.s.directions * q.rows.B * num_gates(q.s.cell) * q.H);
  if (q.s.has_projection) f.hidden = memory.take<T>(q.s.directions * q.rows.B * q.H);
  f.vector_hh =
      whole_pieces(p.output, q.R, sizeof(T)) && fd::aligned(q.h_0, 16) && fd::aligned(q.recurrent_mask, 16);
  f.vector_hr = whole_pieces(f.hidden, q.H, sizeof(T));
  for (int64_t d = 0; d < q.s.directions; ++d) {
    f.vector_hh &= fd::aligned(q.weights[d].weight_hh, 16);
    f.vector_hr &= fd::aligned(q.weights[d].weight_hr, 16);
  }
  return f;
}

template <class T, int kGates>
cudaError_t take_step(const ForwardStep<T>& f, int64_t rows, cudaStream_t stream) {
  const RnnSequence& q = f.p.q;
  cudaError_t error;
  if (q.s.layer_norm) {
    error = launch_step(ProductJob<T>(f), rows, q.s.directions, stream);
    if (error != cudaSuccess) return error;
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(q.s.directions));
    error = fd::launch(norm_forward_kernel<T, kGates>, {grid, dim3(kNormThreads)}, stream, f);
  } else {
    error = launch_step(CellJob<T, kGates>(f), rows, q.s.directions, stream);
  }
  if (error != cudaSuccess || !q.s.has_projection) return error;
  return launch_step(ProjectJob<T>{f, q.R}, rows, q.s.directions, stream);
}

template <class T, int kGates>
cudaError_t forward(const RnnForward& p, void* workspace, cudaStream_t stream) {
  Workspace memory(workspace);
  ForwardStep<T> f = forward_step<T>(p, memory);
  for (int64_t i = 0; i < p.q.rows.T; ++i) {
    int64_t rows = 0;
    for (int64_t d = 0; d < p.q.s.directions; ++d) {
      f.step[d] = step_of(p.q.rows, d, i);
      rows = std::max(rows, f.step[d].at.count);
    }
    if (rows == 0) continue;
    const cudaError_t error = take_step<T, kGates>(f, rows, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class T>
cudaError_t forward(const RnnForward& p, void* workspace, cudaStream_t stream) {
  const RnnRows& rows = p.q.rows;
  if (p.q.lengths || rows.T == 0 || (rows.batch_sizes && rows.batch_sizes[0] < rows.B)) {
    const cudaError_t error =
        fd::launch(initial_states_kernel<T>, {elementwise_grid(p.q), dim3(256)}, stream, p);
    if (error != cudaSuccess) return error;
  }
  switch (num_gates(p.q.s.cell)) {
    case 4:
      return forward<T, 4>(p, workspace, stream);
    case 3:
      return forward<T, 3>(p, workspace, stream);
    default:
      return forward<T, 1>(p, workspace, stream);
  }
}

template <class T>
cudaError_t transpose(const void* from, T* to, int64_t rows, int64_t columns, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((columns + 31) / 32), static_cast<unsigned>((rows + 31) / 32));
  return fd::launch(transpose_kernel<T>, {grid, dim3(256)}, stream, static_cast<const T*>(from), to, rows,
                    columns);
}

template <class T>
BackwardStep<T> backward_step(const RnnBackward& p, Workspace& memory) {
  using A = fd::Compute<T>;
  const RnnSequence& q = p.q;
  const int64_t states = q.s.directions * q.rows.B, gates = num_gates(q.s.cell) * q.H;
  BackwardStep<T> f{};
  f.p = p;
  f.carry_h = memory.take<A>(states * q.R);
  if (q.s.layer_norm)
    f.grad_hidden = memory.take<A>(states * q.H), f.grad_product = memory.take<A>(states * gates);
  for (int64_t d = 0; d < q.s.directions; ++d) {
    f.weight_hh[d] = memory.take<T>(q.R * gates);
    if (q.s.has_projection) f.weight_hr[d] = memory.take<T>(q.H * q.R);
  }
  f.vector_hh = whole_pieces(p.grad_gates, q.H, sizeof(T)) && fd::aligned(p.grad_gates_hh, 16);
  f.vector_hr = whole_pieces(p.grad_projected, q.R, sizeof(T));
  return f;
}

template <class T>
cudaError_t arrive(const BackwardStep<T>& f, int64_t rows, cudaStream_t stream) {
  const RnnSequence& q = f.p.q;
  if (q.s.cell == Cell::kGru && !q.s.layer_norm)
    return launch_step(ArriveJob<T, true>{f, q.R}, rows, q.s.directions, stream);
  return launch_step(ArriveJob<T, false>{f, q.R}, rows, q.s.directions, stream);
}

template <class T>
cudaError_t take_step(const BackwardStep<T>& f, int64_t rows, cudaStream_t stream) {
  const RnnSequence& q = f.p.q;
  cudaError_t error = arrive(f, rows, stream);
  if (error != cudaSuccess) return error;
  if (q.s.has_projection) error = launch_step(HiddenJob<T>{f, q.H}, rows, q.s.directions, stream);
  if (error != cudaSuccess || !q.s.layer_norm) return error;
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(q.s.directions));
  return fd::launch(norm_backward_kernel<T>, {grid, dim3(kNormThreads)}, stream, f);
}

template <class T>
cudaError_t backward(const RnnBackward& p, void* workspace, cudaStream_t stream) {
  const RnnSequence& q = p.q;
  Workspace memory(workspace);
  BackwardStep<T> f = backward_step<T>(p, memory);
  cudaError_t error = fd::launch(arriving_gradients_kernel<T>, {elementwise_grid(q), dim3(256)}, stream, f);
  for (int64_t d = 0; d < q.s.directions && error == cudaSuccess; ++d) {
    const int64_t gates = num_gates(q.s.cell) * q.H;
    error = transpose(q.weights[d].weight_hh, const_cast<T*>(f.weight_hh[d]), gates, q.R, stream);
    if (error == cudaSuccess && q.s.has_projection)
      error = transpose(q.weights[d].weight_hr, const_cast<T*>(f.weight_hr[d]), q.R, q.H, stream);
  }
  for (int64_t i = q.rows.T - 1; i >= 0 && error == cudaSuccess; --i) {
    int64_t rows = 0;
    f.steps_left = i + 1;
    for (int64_t d = 0; d < q.s.directions; ++d) {
      f.step[d] = step_of(q.rows, d, i);
      f.rows[d] = std::max(f.step[d].at.count, f.step[d].after.count);
      rows = std::max(rows, f.rows[d]);
    }
    if (rows > 0) error = take_step(f, rows, stream);
  }
  if (error != cudaSuccess) return error;
  f.steps_left = 0;
  for (int64_t d = 0; d < q.s.directions; ++d) f.step[d] = step_of(q.rows, d, -1), f.rows[d] = q.rows.B;
  return arrive(f, q.rows.B, stream);
}

}  // namespace

int64_t rnn_steps_forward_workspace(const RnnForward& p) {
  return workspace_size(p.q.dtype,
                        [&](auto element, Workspace& memory) { forward_step<decltype(element)>(p, memory); });
}

cudaError_t rnn_steps_forward(const RnnForward& p, void* workspace, cudaStream_t stream) {
  if (!p.q.s.projected) return cudaErrorNotSupported;
  if (p.q.rows.B == 0 || p.q.H == 0) return cudaSuccess;
  return fd::with_type(p.q.dtype,
                       [&](auto element) { return forward<decltype(element)>(p, workspace, stream); });
}

int64_t rnn_steps_backward_workspace(const RnnBackward& p) {
  return workspace_size(
      p.q.dtype, [&](auto element, Workspace& memory) { backward_step<decltype(element)>(p, memory); });
}

cudaError_t rnn_steps_backward(const RnnBackward& p, void* workspace, cudaStream_t stream) {
  if (!p.q.s.projected) return cudaErrorNotSupported;
  if (p.q.rows.B == 0 || p.q.H == 0) return cudaSuccess;
  return fd::with_type(p.q.dtype,
                       [&](auto element) { return backward<decltype(element)>(p, workspace, stream); });
}

}  // namespace fastdl::cuda
