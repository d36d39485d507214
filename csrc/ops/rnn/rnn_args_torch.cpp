#include "ops/rnn/rnn_args.h"

namespace fastdl {
namespace {

using torch::headeronly::ScalarType;

bool has_shape(const Tensor& t, const IntList& sizes) {
  if (t.dim() != static_cast<int64_t>(sizes.size())) return false;
  for (int64_t i = 0; i < t.dim(); ++i)
    if (t.size(i) != sizes[static_cast<size_t>(i)]) return false;
  return true;
}

ScalarType accumulate_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

RnnStructure unpack(const IntList& packed) {
  check(packed.size() == 8, "structure must hold 8 ints, got ", packed.size());
  check(packed[0] >= 0 && packed[0] <= 3, "no cell has the code ", packed[0]);
  check(packed[1] == 1 || packed[1] == 2, "directions must be 1 or 2, got ", packed[1]);
  RnnStructure s = {static_cast<Cell>(packed[0]),
                    packed[1],
                    packed[2] != 0,
                    packed[3] != 0,
                    packed[4] != 0,
                    packed[5] != 0,
                    packed[6] != 0,
                    packed[7] != 0};
  const bool lstm = s.cell == Cell::kLstm;
  check(lstm || (!s.has_projection && !s.peephole), "only an lstm has a projection or peepholes");
  check(s.projected || !s.layer_norm, "layer norm needs a projected x");
  return s;
}

// Checks tensors against a call's dtype and device, copies what is not contiguous, keeps all of them alive.
template <class Args>
class Filler {
 public:
  Filler(RnnCall<Args>& call, const Tensor& like) : call_(call), like_(like) {}

  const Tensor& keep(const Tensor& t, ScalarType dtype, const IntList& sizes, const char* name) {
    check(t.scalar_type() == dtype, name, " has a dtype that does not fit the other inputs");
    check(t.device() == like_.device(), name, " must be on the device of the other inputs");
    check(has_shape(t, sizes), name, " must have shape ", shape_text(sizes), ", got ", shape_text(t));
    call_.inputs.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
    return call_.inputs.back();
  }
  const void* input(const Tensor& t, ScalarType dtype, const IntList& sizes, const char* name) {
    return keep(t, dtype, sizes, name).data_ptr();
  }
  const void* input(const MaybeTensor& t, ScalarType dtype, const IntList& sizes, const char* name) {
    return t ? input(*t, dtype, sizes, name) : nullptr;
  }
  // An output of the operator; empty where it does not exist.
  void* output(bool exists, ScalarType dtype, const IntList& sizes) {
    call_.outputs.push_back(empty_contiguous(exists ? sizes : IntList{0}, dtype, like_));
    return exists ? call_.outputs.back().data_ptr() : nullptr;
  }

  ScalarType dtype() const { return like_.scalar_type(); }
  ScalarType accumulate() const { return accumulate_dtype(dtype()); }

  // [*rows, width]
  IntList rows(int64_t width) const {
    const RnnRows& r = call_.args.q.rows;
    if (r.batch_sizes != nullptr) return {r.count, width};
    return call_.args.q.s.batch_first ? IntList{r.B, r.T, width} : IntList{r.T, r.B, width};
  }
  IntList rows_flat() const {
    IntList sizes = rows(0);
    sizes.pop_back();
    return sizes;
  }

  // Sizes and rows, from a tensor with the rows in front.
  void set_rows(const Tensor& t, const char* name, const RnnContext& context, const MaybeTensor& h_0) {
    RnnSequence& q = call_.args.q;
    q.s = unpack(context.structure);
    q.dtype = dtype_of(t);
    RnnRows& r = q.rows;
    if (!context.batch_sizes) {
      check(t.dim() == 3, name, " must have 3 dimensions, or 2 with batch_sizes, got ", shape_text(t));
      r.T = t.size(q.s.batch_first ? 1 : 0), r.B = t.size(q.s.batch_first ? 0 : 1);
      r.count = r.T * r.B;
      r.row_t = q.s.batch_first ? 1 : r.B, r.row_b = q.s.batch_first ? r.T : 1;
      return;
    }
    check(t.dim() == 2, name, " must have 2 dimensions with batch_sizes, got ", shape_text(t));
    check(h_0.has_value(), "packed rows need h_0");
    check(h_0->dim() == 3, "h_0 must have shape [D, B, R], got ", shape_text(*h_0));
    set_packed(*context.batch_sizes, t.size(0), h_0->size(1));
  }

  // A single step of B sequences.
  void set_step(int64_t B, int64_t cell, bool has_bias) {
    RnnSequence& q = call_.args.q;
    q.s = unpack({cell, 1, false, has_bias, false, false, false, false});
    q.dtype = dtype_of(like_);
    q.rows.T = 1, q.rows.B = q.rows.count = q.rows.row_t = B, q.rows.row_b = 1;
  }

  void set_weights(const std::vector<Tensor>& weights, int64_t width) {
    RnnSequence& q = call_.args.q;
    const RnnStructure& s = q.s;
    const size_t each = (s.projected ? 0 : (s.has_bias ? 2 : 1)) + 1 + s.has_bias + s.has_projection +
                        s.peephole + s.layer_norm + (s.layer_norm && s.cell == Cell::kLstm ? 2 : 0);
    check(weights.size() == each * static_cast<size_t>(s.directions), "expected ", each * s.directions,
          " weights, got ", weights.size());
    const Tensor& weight_hh = weights[s.projected ? 0 : 1];
    check(weight_hh.dim() == 2, "weight_hh must have shape [G * H, R], got ", shape_text(weight_hh));
    const int64_t G = num_gates(s.cell);
    q.H = weight_hh.size(0) / G, q.R = weight_hh.size(1), q.I = s.projected ? 0 : width;
    check(q.H > 0 && q.R > 0, "weight_hh must not be empty, got ", shape_text(weight_hh));
    check(q.s.has_projection || q.R == q.H, "weight_hh must have shape [G * H, H] without a projection, got ",
          shape_text(weight_hh));
    for (int64_t d = 0; d < s.directions; ++d) {
      const Tensor* next = weights.data() + static_cast<size_t>(d) * each;
      const auto take = [&](bool present, const IntList& sizes, const char* name) {
        return present ? input(*next++, dtype(), sizes, name) : nullptr;
      };
      RnnWeights& w = q.weights[d];
      const bool ih = !s.projected, norm_c = s.layer_norm && s.cell == Cell::kLstm;
      w.weight_ih = take(ih, {G * q.H, q.I}, "weight_ih");
      w.weight_hh = take(true, {G * q.H, q.R}, "weight_hh");
      w.bias_ih = take(ih && s.has_bias, {G * q.H}, "bias_ih");
      w.bias_hh = take(s.has_bias, {G * q.H}, "bias_hh");
      w.weight_hr = take(s.has_projection, {q.R, q.H}, "weight_hr");
      w.weight_peephole = take(s.peephole, {3 * q.H}, "weight_peephole");
      w.weight_norm_hh = take(s.layer_norm, {G * q.H}, "weight_norm_hh");
      w.weight_norm_c = take(norm_c, {q.H}, "weight_norm_c");
      w.bias_norm_c = take(norm_c, {q.H}, "bias_norm_c");
    }
  }

  void set_state(const MaybeTensor& h, const MaybeTensor& c) {
    RnnSequence& q = call_.args.q;
    check(!c || q.s.cell == Cell::kLstm, "only an lstm has c");
    q.h_0 = input(h, dtype(), {q.rows.B, q.R}, "h");
    q.c_0 = input(c, accumulate(), {q.rows.B, q.H}, "c");
  }

  void set_state_and_context(const MaybeTensor& h_0, const MaybeTensor& c_0, const RnnContext& context) {
    RnnSequence& q = call_.args.q;
    const int64_t D = q.s.directions, B = q.rows.B;
    check(!context.batch_sizes || !context.lengths, "batch_sizes and lengths exclude each other");
    check(!c_0 || q.s.cell == Cell::kLstm, "only an lstm has c_0");
    q.h_0 = input(h_0, dtype(), {D, B, q.R}, "h_0");
    q.c_0 = input(c_0, accumulate(), {D, B, q.H}, "c_0");
    q.lengths = static_cast<const int64_t*>(input(context.lengths, ScalarType::Long, {B}, "lengths"));
    q.reset = static_cast<const uint8_t*>(input(context.reset, ScalarType::Bool, rows_flat(), "reset"));
    q.recurrent_mask = input(context.recurrent_mask, dtype(), {D, B, q.R}, "recurrent_mask");
    q.zoneout_h =
        static_cast<const uint8_t*>(input(context.zoneout_h, ScalarType::Bool, rows(D * q.R), "zoneout_h"));
    q.zoneout_c =
        static_cast<const uint8_t*>(input(context.zoneout_c, ScalarType::Bool, rows(D * q.H), "zoneout_c"));
    check(!q.zoneout_c || q.s.cell == Cell::kLstm, "only an lstm has zoneout_c");
    check(context.zoneout.size() == 2, "zoneout must hold 2 numbers, got ", context.zoneout.size());
    q.zoneout[0] = context.zoneout[0], q.zoneout[1] = context.zoneout[1];
  }

 private:
  void set_packed(const Tensor& batch_sizes, int64_t total, int64_t B) {
    check(batch_sizes.dim() == 1 && batch_sizes.scalar_type() == ScalarType::Long && batch_sizes.is_cpu(),
          "batch_sizes must be a [T] int64 tensor on the CPU");
    const Tensor sizes = batch_sizes.is_contiguous() ? batch_sizes : torch::stable::contiguous(batch_sizes);
    // A copy: what was checked is what the kernels read.
    const int64_t* begin = static_cast<const int64_t*>(sizes.data_ptr());
    call_.batch_sizes.assign(begin, begin + sizes.numel());
    int64_t rows = 0, most = B;
    for (const int64_t size : call_.batch_sizes) {
      check(size >= 0 && size <= most, "batch_sizes must not increase, nor exceed the batch of h_0, ", B);
      call_.row_offset.push_back(rows);
      rows += size, most = size;
    }
    check(rows == total, "batch_sizes must sum to the number of rows, ", total, ", got ", rows);
    RnnRows& r = call_.args.q.rows;
    r.T = sizes.numel(), r.B = B, r.count = total, r.row_t = 0, r.row_b = 1;
    r.batch_sizes = call_.batch_sizes.data(), r.row_offset = call_.row_offset.data();
  }

  RnnCall<Args>& call_;
  const Tensor& like_;
};

int64_t saved_width(const RnnStructure& s) {
  const bool four = s.cell == Cell::kLstm || s.cell == Cell::kGru;
  return (four ? 4 : 1) + (s.layer_norm ? num_gates(s.cell) : 0);
}

int64_t recurrent_grad_width(const RnnStructure& s) {
  return s.layer_norm ? num_gates(s.cell) : s.cell == Cell::kGru ? 1 : 0;
}

// Whether consecutive rows have one distance, and elements of a row none.
bool has_row_stride(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  if (x.size(last) != 1 && x.stride(last) != 1) return false;
  return last == 1 || x.size(0) == 1 || x.size(1) == 1 || x.stride(0) == x.size(1) * x.stride(1);
}

int64_t row_stride(const Tensor& x) {
  if (x.dim() == 2) return x.stride(0);
  return x.size(1) == 1 ? x.stride(0) : x.stride(1);
}

void set_x(RnnCall<RnnForward>& call, const Tensor& x) {
  const Tensor rows = has_row_stride(x) ? x : torch::stable::contiguous(x);
  call.inputs.push_back(rows);
  call.args.x = rows.data_ptr(), call.args.x_row_stride = row_stride(rows);
}

}  // namespace

void fill(RnnCall<RnnForward>& call, const Tensor& x, const MaybeTensor& h_0, const MaybeTensor& c_0,
          const std::vector<Tensor>& weights, const RnnContext& context, bool save) {
  Filler<RnnForward> filler(call, x);
  RnnForward& args = call.args;
  RnnSequence& q = args.q;
  filler.set_rows(x, "x", context, h_0);
  const RnnStructure& s = q.s;
  filler.set_weights(weights, x.size(x.dim() - 1));
  filler.set_state_and_context(h_0, c_0, context);
  const int64_t D = s.directions, width = s.projected ? D * num_gates(s.cell) * q.H : q.I;
  check(x.size(x.dim() - 1) == width, "x must have ", width, " columns, got ", shape_text(x));
  set_x(call, x);

  const bool lstm = s.cell == Cell::kLstm;
  const ScalarType dtype = filler.dtype(), accumulate = filler.accumulate();
  args.output = filler.output(true, dtype, filler.rows(D * q.R));
  args.h_n = filler.output(true, dtype, {D, q.rows.B, q.R});
  args.c_n = filler.output(lstm, accumulate, {D, q.rows.B, q.H});
  args.gates = filler.output(save, dtype, filler.rows(D * saved_width(s) * q.H));
  args.cells = filler.output(save && lstm, accumulate, filler.rows(D * q.H));
  args.rstd = filler.output(save && s.layer_norm, accumulate, filler.rows(D));
}

void fill_step(RnnCall<RnnForward>& call, const Tensor& x, const MaybeTensor& h, const MaybeTensor& c,
               const std::vector<Tensor>& weights, int64_t cell) {
  Filler<RnnForward> filler(call, x);
  RnnForward& args = call.args;
  check(x.dim() == 2, "x must have 2 dimensions, got ", shape_text(x));
  filler.set_step(x.size(0), cell, weights.size() > 2);
  filler.set_weights(weights, x.size(1));
  filler.set_state(h, c);
  set_x(call, x);

  const RnnSequence& q = args.q;
  args.output = args.h_n = filler.output(true, filler.dtype(), {q.rows.B, q.H});
  args.c_n = filler.output(q.s.cell == Cell::kLstm, filler.accumulate(), {q.rows.B, q.H});
}

void fill(RnnCall<RnnBackward>& call, const MaybeTensor& grad_output, const MaybeTensor& grad_h_n,
          const MaybeTensor& grad_c_n, const MaybeTensor& h_0, const MaybeTensor& c_0,
          const std::vector<Tensor>& weights, const Tensor& output, const Tensor& gates, const Tensor& cells,
          const Tensor& rstd, const RnnContext& context) {
  Filler<RnnBackward> filler(call, output);
  RnnBackward& args = call.args;
  RnnSequence& q = args.q;
  filler.set_rows(output, "output", context, h_0);
  const RnnStructure& s = q.s;
  check(s.projected, "the backward operator needs a projected x");
  filler.set_weights(weights, 0);
  filler.set_state_and_context(h_0, c_0, context);
  const bool lstm = s.cell == Cell::kLstm;
  const int64_t D = s.directions, B = q.rows.B;
  const ScalarType dtype = filler.dtype(), accumulate = filler.accumulate();
  check(!grad_c_n || lstm, "only an lstm has grad_c_n");
  args.grad_output = filler.input(grad_output, dtype, filler.rows(D * q.R), "grad_output");
  args.grad_h_n = filler.input(grad_h_n, dtype, {D, B, q.R}, "grad_h_n");
  args.grad_c_n = filler.input(grad_c_n, accumulate, {D, B, q.H}, "grad_c_n");
  args.output = filler.input(output, dtype, filler.rows(D * q.R), "output");
  args.gates = filler.input(gates, dtype, filler.rows(D * saved_width(s) * q.H), "gates");
  args.cells = lstm ? filler.input(cells, accumulate, filler.rows(D * q.H), "cells") : nullptr;
  args.rstd = s.layer_norm ? filler.input(rstd, accumulate, filler.rows(D), "rstd") : nullptr;

  const int64_t hh = recurrent_grad_width(s);
  args.grad_gates = filler.output(true, dtype, filler.rows(D * num_gates(s.cell) * q.H));
  args.grad_gates_hh = filler.output(hh != 0, dtype, filler.rows(D * hh * q.H));
  args.grad_h_0 = filler.output(true, dtype, {D, B, q.R});
  args.grad_c_0 = filler.output(lstm, accumulate, {D, B, q.H});
  args.grad_projected = filler.output(s.has_projection, dtype, filler.rows(D * q.R));
  args.grad_norm_c = filler.output(s.layer_norm && lstm, dtype, filler.rows(D * q.H));
}

}  // namespace fastdl
