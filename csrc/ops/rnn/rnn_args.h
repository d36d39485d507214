// Tensors -> the kernels' argument structs, for the CPU and the CUDA operators alike: every check memory
// safety depends on, every output allocation. Included by *_torch.cpp alone.
#pragma once
#include <optional>
#include <tuple>

#include "common/torch_glue.h"
#include "ops/rnn/rnn.h"

namespace fastdl {

using MaybeTensor = std::optional<Tensor>;
using SixTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The inputs of the operators of sequences but for the first few, in the schema's order.
struct RnnContext {
  MaybeTensor batch_sizes, lengths, reset, recurrent_mask, zoneout_h, zoneout_c;
  IntList structure;
  std::vector<double> zoneout;
};

// The arguments, and what their pointers point to: a call lives as long as its kernels run. Not copied, not
// moved: the arguments point into it.
template <class Args>
struct RnnCall {
  Args args = {};
  std::vector<Tensor> inputs, outputs;
  IntList batch_sizes, row_offset;

  RnnCall() = default;
  RnnCall(const RnnCall&) = delete;
  RnnCall& operator=(const RnnCall&) = delete;

  SixTensors results() const {
    return {outputs[0], outputs[1], outputs[2], outputs[3], outputs[4], outputs[5]};
  }
  // No rows: outputs are complete once h_n, c_n (or their gradients) are copied.
  bool is_empty() const { return args.q.rows.count == 0; }
};

// Throws where a shape, dtype, device or batch size does not fit; fills in everything.
void fill(RnnCall<RnnForward>& call, const Tensor& x, const MaybeTensor& h_0, const MaybeTensor& c_0,
          const std::vector<Tensor>& weights, const RnnContext& context, bool save);
// The same for a single step without variants; its output is h_n too.
void fill_step(RnnCall<RnnForward>& call, const Tensor& x, const MaybeTensor& h, const MaybeTensor& c,
               const std::vector<Tensor>& weights, int64_t cell);
void fill(RnnCall<RnnBackward>& call, const MaybeTensor& grad_output, const MaybeTensor& grad_h_n,
          const MaybeTensor& grad_c_n, const MaybeTensor& h_0, const MaybeTensor& c_0,
          const std::vector<Tensor>& weights, const Tensor& output, const Tensor& gates, const Tensor& cells,
          const Tensor& rstd, const RnnContext& context);

}  // namespace fastdl
