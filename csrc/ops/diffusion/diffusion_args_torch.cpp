#include "ops/diffusion/diffusion_args.h"

namespace fastdl {
namespace {

using torch::headeronly::ScalarType;

// fastdl/ops/diffusion/schema.py
enum Flag : int64_t {
  kWantPrev = 1,
  kWantX0 = 2,
  kWantValue = 4,
  kGuided = 8,
  kClip = 16,
  kThreshold = 32,
  kNeedSample = 64,
  kNeedModel = 128,
  kNeedHistory = 256,
  kNeedNoise = 512
};

Tensor empty_in(const IntList& sizes, bool channels_last, const Tensor& like) {
  if (channels_last)
    return empty_image(sizes[0], sizes[1], sizes[2], sizes[3], true, like.scalar_type(), like);
  return empty_contiguous(sizes, like.scalar_type(), like);
}

Tensor in_order(const Tensor& t, bool channels_last) {
  if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
  if (!channels_last) return torch::stable::contiguous(t);
  Tensor copy = empty_in(sizes_of(t), true, t);
  torch::stable::copy_(copy, t);
  return copy;
}

MaybeTensor matching(const MaybeTensor& t, const char* name, const IntList& sizes, const Tensor& like,
                     bool channels_last) {
  if (!t) return t;
  check(sizes_of(*t) == sizes, name, " has the wrong shape ", shape_text(*t));
  check(t->scalar_type() == like.scalar_type(), name, " must have the dtype of the sample");
  check(t->device() == like.device(), name, " must be on the device of the sample");
  return in_order(*t, channels_last);
}

const void* pointer(const MaybeTensor& t) { return t ? t->data_ptr() : nullptr; }

int64_t checked_rows(const MaybeTensor& rows, int64_t row, const Tensor& table, const Tensor& like,
                     TableRows& out) {
  check(table.dim() == 2 && table.size(1) == kColumns && table.scalar_type() == ScalarType::Float &&
            table.is_contiguous(),
        "the table must be float32, contiguous, [rows, ", int{kColumns}, "]");
  check(table.device() == like.device(), "the table must be on the device of the sample");
  out = {static_cast<const float*>(table.data_ptr()), table.size(0), nullptr, 0, row};
  if (!rows) {
    check(row >= 0 && row < table.size(0), "timestep ", row, " is outside the table's [0, ",
          table.size(0) - 1, "]");
    return like.size(0);
  }
  check(rows->scalar_type() == ScalarType::Long && rows->is_contiguous(), "rows must be int64, contiguous");
  check(rows->device() == like.device(), "rows must be on the device of the sample");
  out.row_of = static_cast<const int64_t*>(rows->data_ptr());
  if (rows->numel() == 1) return like.size(0);
  check(rows->dim() <= like.dim(), "rows has more dimensions than the sample");
  for (int64_t i = 0; i < rows->dim(); ++i)
    check(rows->size(i) == like.size(i), "rows must have the sample's leading sizes, got ",
          shape_text(*rows));
  out.row_stride = 1;
  return rows->numel();
}

// Rows of more than one dimension cut a channels_last sample into pieces that are not contiguous.
bool keeps_channels_last(const Tensor& t, const MaybeTensor& rows) {
  return is_channels_last(t) && (!rows || rows->dim() < 2);
}

MaybeTensor checked_seed(const MaybeTensor& seed, const Tensor& like) {
  if (!seed) return seed;
  check(seed->scalar_type() == ScalarType::Long && seed->numel() == 2, "seed must be int64 [2]");
  check(seed->device() == like.device(), "seed must be on the device of the sample");
  return seed->is_contiguous() ? seed : torch::stable::contiguous(*seed);
}

IntList doubled(IntList sizes, bool guided) {
  if (guided) sizes[0] *= 2;
  return sizes;
}

}  // namespace

StepCall step_call(const Tensor& sample, const MaybeTensor& model_output, const MaybeTensor& history,
                   const MaybeTensor& noise, const MaybeTensor& seed, const MaybeTensor& rows, int64_t row,
                   const Tensor& table, int64_t flags, double guidance, double rescale, double limit,
                   double quantile) {
  check(sample.dim() > 0, "sample must have a batch dimension");
  StepCall call{{}, sample, table, {}, {}, {}, {}, rows, sample, sample, sample};
  DiffusionStep& a = call.args;
  const bool channels_last = keeps_channels_last(sample, rows);
  const IntList sizes = sizes_of(sample);
  a.dtype = dtype_of(sample);
  a.guided = flags & kGuided;
  check(!a.guided || model_output, "guidance needs a model_output");
  call.sample = in_order(sample, channels_last);
  call.model_output = matching(model_output, "model_output", doubled(sizes, a.guided), sample, channels_last);
  call.history = matching(history, "history", sizes, sample, channels_last);
  call.noise = matching(noise, "noise", sizes, sample, channels_last);
  call.seed = checked_seed(seed, sample);
  a.samples = checked_rows(rows, row, table, sample, a.rows);
  a.sample_size = a.samples ? sample.numel() / a.samples : 0;
  a.limit = flags & kThreshold ? Limit::kThreshold : flags & kClip ? Limit::kClip : Limit::kNone;
  check(quantile >= 0 && quantile <= 1, "quantile must be in [0, 1], got ", quantile);
  const bool whole_samples = a.limit == Limit::kThreshold || (a.guided && rescale != 0);
  check(!whole_samples || a.samples == sample.size(0), "this needs one timestep a sample");
  a.guidance = guidance, a.rescale = rescale, a.limit_value = limit, a.quantile = quantile;
  a.sample = call.sample.data_ptr();
  a.model_output = pointer(call.model_output), a.history = pointer(call.history);
  a.noise = pointer(call.noise);
  a.seed = static_cast<const int64_t*>(pointer(call.seed));
  const auto output = [&](int64_t flag) {
    return flags & flag ? empty_in(sizes, channels_last, sample)
                        : empty_contiguous({0}, sample.scalar_type(), sample);
  };
  call.prev = output(kWantPrev), call.x_0 = output(kWantX0);
  const int64_t values = rows ? rows->numel() : 1;
  call.value = empty_contiguous({flags & kWantValue ? values : 0}, ScalarType::Float, sample);
  a.prev = flags & kWantPrev ? call.prev.data_ptr() : nullptr;
  a.x_0 = flags & kWantX0 ? call.x_0.data_ptr() : nullptr;
  a.value = flags & kWantValue ? static_cast<float*>(call.value.data_ptr()) : nullptr;
  return call;
}

StepBackwardCall step_backward_call(const MaybeTensor& grad_prev, const MaybeTensor& grad_x0,
                                    const MaybeTensor& sample, const MaybeTensor& model_output,
                                    const MaybeTensor& rows, int64_t row, const Tensor& table, int64_t flags,
                                    double guidance, double limit) {
  check(grad_prev || grad_x0, "a backward needs a gradient");
  const Tensor& like = grad_prev ? *grad_prev : *grad_x0;
  check(like.dim() > 0, "a gradient must have a batch dimension");
  StepBackwardCall call{{}, table, {}, {}, {}, {}, rows, like, like, like, like};
  DiffusionStepBackward& a = call.args;
  const bool channels_last = keeps_channels_last(like, rows);
  const IntList sizes = sizes_of(like);
  a.dtype = dtype_of(like);
  a.guided = flags & kGuided, a.clipped = flags & kClip;
  a.guidance = guidance, a.limit_value = limit;
  check(!a.clipped || sample, "the backward of clipping needs the sample");
  call.grad_prev = matching(grad_prev, "grad_prev", sizes, like, channels_last);
  call.grad_x0 = matching(grad_x0, "grad_x0", sizes, like, channels_last);
  if (a.clipped) {
    call.sample = matching(sample, "sample", sizes, like, channels_last);
    call.model_output = matching(model_output, "model_output", doubled(sizes, a.guided), like, channels_last);
  }
  a.samples = checked_rows(rows, row, table, like, a.rows);
  a.sample_size = a.samples ? like.numel() / a.samples : 0;
  a.grad_prev = pointer(call.grad_prev), a.grad_x0 = pointer(call.grad_x0);
  a.sample = pointer(call.sample), a.model_output = pointer(call.model_output);
  const auto output = [&](int64_t flag, bool is_guided, Tensor& tensor, void*& target) {
    const bool wanted = flags & flag;
    tensor = wanted ? empty_in(doubled(sizes, is_guided), channels_last, like)
                    : empty_contiguous({0}, like.scalar_type(), like);
    target = wanted ? tensor.data_ptr() : nullptr;
  };
  output(kNeedSample, false, call.grad_sample, a.grad_sample);
  output(kNeedModel, a.guided, call.grad_model, a.grad_model);
  output(kNeedHistory, false, call.grad_history, a.grad_history);
  output(kNeedNoise, false, call.grad_noise, a.grad_noise);
  return call;
}

NoiseCall noise_call(const Tensor& like, const Tensor& seed) {
  const MaybeTensor checked = checked_seed(seed, like);
  NoiseCall call{{}, *checked, empty_in(sizes_of(like), is_channels_last(like), like)};
  call.args = {dtype_of(like), like.numel(), static_cast<const int64_t*>(call.seed.data_ptr()),
               call.output.data_ptr()};
  return call;
}

}  // namespace fastdl
