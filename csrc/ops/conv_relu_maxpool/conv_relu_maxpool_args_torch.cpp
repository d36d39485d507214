#include "ops/conv_relu_maxpool/conv_relu_maxpool_args.h"

namespace fastdl {
namespace {

using torch::headeronly::ScalarType;

void copy_pair(const int64_t* from, int64_t (&to)[2], const char* name, int64_t least) {
  check(from[0] >= least && from[1] >= least, name, " must be at least ", least, ", got ", from[0], " and ",
        from[1]);
  to[0] = from[0], to[1] = from[1];
}

// A tensor the kernels can walk: channels_last, or contiguous.
Tensor dense(const Tensor& t) {
  return is_channels_last(t) || t.is_contiguous() ? t : torch::stable::contiguous(t);
}

std::optional<Tensor> checked_bias(const std::optional<Tensor>& bias, const Tensor& like, int64_t C) {
  if (!bias) return bias;
  check(bias->dim() == 1 && bias->size(0) == C, "bias must have shape [C_out] = [", C, "], got ",
        shape_text(*bias));
  check(bias->scalar_type() == like.scalar_type(), "bias must have the dtype of the other inputs");
  check(bias->device() == like.device(), "bias must be on the device of the other inputs");
  return bias->is_contiguous() ? bias : torch::stable::contiguous(*bias);
}

}  // namespace

Tensor in_memory_format(const Tensor& t, bool channels_last) {
  if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
  Tensor copy = empty_image(t.size(0), t.size(1), t.size(2), t.size(3), channels_last, t.scalar_type(), t);
  torch::stable::copy_(copy, t);
  return copy;
}

void unpack(const IntList& packed, const Tensor& x, const Tensor& weight, ConvGeometry& g,
            PoolGeometry& pool) {
  check(packed.size() == 7 || packed.size() == 16, "geometry must hold 7 or 16 ints, got ", packed.size());
  check(x.dim() == 4, "x must have shape [N, C, H, W], got ", shape_text(x));
  check(weight.dim() == 4, "weight must have shape [C_out, C/groups, KH, KW], got ", shape_text(weight));
  g.N = x.size(0), g.C = x.size(1), g.H = x.size(2), g.W = x.size(3);
  g.C_out = weight.size(0), g.KH = weight.size(2), g.KW = weight.size(3);
  copy_pair(packed.data(), g.stride, "stride", 1);
  copy_pair(packed.data() + 2, g.padding, "padding", 0);
  copy_pair(packed.data() + 4, g.dilation, "dilation", 1);
  g.groups = packed[6];
  check(g.groups >= 1 && g.C == weight.size(1) * g.groups && g.C_out % g.groups == 0,
        "weight must have shape [C_out, C/groups, KH, KW] with C = ", g.C, " and groups = ", g.groups,
        ", got ", shape_text(weight));
  check(g.C_out > 0 && weight.size(1) > 0 && g.KH > 0 && g.KW > 0, "weight must not be empty, got ",
        shape_text(weight));
  const int64_t span_h = g.H + 2 * g.padding[0] - g.dilation[0] * (g.KH - 1) - 1;
  const int64_t span_w = g.W + 2 * g.padding[1] - g.dilation[1] * (g.KW - 1) - 1;
  check(span_h >= 0 && span_w >= 0, "the kernel is larger than the padded input of ", shape_text(x));
  g.CH = span_h / g.stride[0] + 1, g.CW = span_w / g.stride[1] + 1;
  pool = unpack_pool(IntList(packed.begin() + 7, packed.end()), g.CH, g.CW);
}

PoolGeometry unpack_pool(const IntList& packed, int64_t CH, int64_t CW) {
  check(packed.empty() || packed.size() == 9, "pool must hold 0 or 9 ints, got ", packed.size());
  PoolGeometry p{};
  p.present = !packed.empty();
  p.OH = CH, p.OW = CW;
  if (!p.present) return p;
  copy_pair(packed.data(), p.size, "pool_size", 1);
  copy_pair(packed.data() + 2, p.stride, "pool_stride", 1);
  copy_pair(packed.data() + 4, p.padding, "pool_padding", 0);
  copy_pair(packed.data() + 6, p.dilation, "pool_dilation", 1);
  const bool ceil_mode = packed[8] != 0;
  check(p.size[0] * p.size[1] <= 255, "pool_size must cover at most 255 elements");
  const int64_t in[2] = {CH, CW};
  int64_t out[2];
  for (int i = 0; i < 2; ++i) {
    check(2 * p.padding[i] <= p.size[i], "pool_padding must be at most half of pool_size");
    const int64_t span = in[i] + 2 * p.padding[i] - p.dilation[i] * (p.size[i] - 1) - 1;
    check(span >= 0 || ceil_mode, "pool_size does not fit in the convolution's output");
    out[i] = (span + (ceil_mode ? p.stride[i] - 1 : 0)) / p.stride[i] + 1;
    if (ceil_mode && (out[i] - 1) * p.stride[i] >= in[i] + p.padding[i]) --out[i];
    check(out[i] >= 1, "pool_size does not fit in the convolution's output");
  }
  p.OH = out[0], p.OW = out[1];
  return p;
}

ConvInputs conv_inputs(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                       const ConvGeometry& conv, bool channels_last_weight) {
  check(x.scalar_type() == weight.scalar_type(), "weight must have the dtype of x");
  check(x.device() == weight.device(), "weight must be on the device of x");
  const bool kept = weight.is_contiguous() || (channels_last_weight && is_channels_last(weight));
  return {dense(x), kept ? weight : torch::stable::contiguous(weight), checked_bias(bias, x, conv.C_out)};
}

ConvOutput conv_output(const Tensor& conv, const std::optional<Tensor>& bias) {
  check(conv.dim() == 4, "conv must have shape [N, C_out, CH, CW], got ", shape_text(conv));
  return {dense(conv), checked_bias(bias, conv, conv.size(1))};
}

PooledOutput pooled_output(const Tensor& like, int64_t N, int64_t C, const PoolGeometry& pool,
                           bool save_record) {
  const bool channels_last = is_channels_last(like), has_record = save_record && pool.present;
  return {empty_image(N, C, pool.OH, pool.OW, channels_last, like.scalar_type(), like),
          has_record ? empty_image(N, C, pool.OH, pool.OW, channels_last, ScalarType::Byte, like)
                     : empty_contiguous({0}, ScalarType::Byte, like),
          has_record};
}

PooledGradient pooled_gradient(const Tensor& grad_output, const Tensor& saved, int64_t N, int64_t C,
                               const PoolGeometry& pool) {
  const int64_t expected[4] = {N, C, pool.OH, pool.OW};
  check(grad_output.dim() == 4 && saved.dim() == 4, "grad_output and saved must have 4 dimensions");
  for (int i = 0; i < 4; ++i)
    check(grad_output.size(i) == expected[i] && saved.size(i) == expected[i],
          "grad_output and saved must have shape [", N, ", ", C, ", ", pool.OH, ", ", pool.OW, "], got ",
          shape_text(grad_output), " and ", shape_text(saved));
  if (pool.present)
    check(saved.scalar_type() == ScalarType::Byte, "the record must be uint8");
  else
    check(saved.scalar_type() == grad_output.scalar_type(),
          "the saved output must have the dtype of grad_output");
  check(saved.device() == grad_output.device(), "saved must be on the device of grad_output");
  const Tensor dense_saved = dense(saved);
  return {in_memory_format(grad_output, is_channels_last(dense_saved)), dense_saved};
}

ConvGradients conv_gradients(const ConvInputs& inputs, bool need_input, bool need_weight, bool need_bias) {
  const Tensor &x = inputs.x, &weight = inputs.weight;
  const ScalarType dtype = x.scalar_type();
  // a tensor of its own each: outputs of an operator must not alias
  const auto none = [&] { return empty_contiguous({0}, dtype, x); };
  return {need_input ? empty_image(x.size(0), x.size(1), x.size(2), x.size(3), is_channels_last(x), dtype, x)
                     : none(),
          need_weight
              ? empty_contiguous({weight.size(0), weight.size(1), weight.size(2), weight.size(3)}, dtype, x)
              : none(),
          need_bias ? empty_contiguous({weight.size(0)}, dtype, x) : none(),
          need_input,
          need_weight,
          need_bias};
}

ExpandedGradient expanded_gradient(const PooledGradient& gradient, int64_t CH, int64_t CW) {
  const Tensor& g = gradient.grad_output;
  return {empty_image(g.size(0), g.size(1), CH, CW, is_channels_last(gradient.saved), g.scalar_type(), g),
          empty_contiguous({g.size(1)}, g.scalar_type(), g)};
}

void fill(ConvReluMaxpoolForward& args, const ConvInputs& inputs, const PooledOutput& result) {
  args.dtype = dtype_of(inputs.x);
  args.x = inputs.x.data_ptr();
  copy_strides(inputs.x, args.x_strides);
  args.weight = inputs.weight.data_ptr();
  args.weight_channels_last = !inputs.weight.is_contiguous();
  args.bias = inputs.bias ? inputs.bias->data_ptr() : nullptr;
  args.output = result.output.data_ptr();
  copy_strides(result.output, args.output_strides);
  args.record = result.has_record ? static_cast<uint8_t*>(result.record.data_ptr()) : nullptr;
}

void fill(ConvReluMaxpoolBackward& args, const ConvInputs& inputs, const PooledGradient& gradient,
          const ConvGradients& result) {
  args.dtype = dtype_of(inputs.x);
  check(dtype_of(gradient.grad_output) == args.dtype, "grad_output must have the dtype of x");
  args.grad_output = gradient.grad_output.data_ptr();
  copy_strides(gradient.grad_output, args.grad_output_strides);
  args.record = args.pool.present ? static_cast<const uint8_t*>(gradient.saved.data_ptr()) : nullptr;
  args.output = args.pool.present ? nullptr : gradient.saved.data_ptr();
  args.x = inputs.x.data_ptr();
  copy_strides(inputs.x, args.x_strides);
  args.weight = inputs.weight.data_ptr();
  args.weight_channels_last = !inputs.weight.is_contiguous();
  args.grad_input = result.need_input ? result.grad_input.data_ptr() : nullptr;
  args.grad_weight = result.need_weight ? result.grad_weight.data_ptr() : nullptr;
  args.grad_bias = result.need_bias ? result.grad_bias.data_ptr() : nullptr;
}

void fill(BiasReluMaxpoolForward& args, const ConvOutput& input, const PooledOutput& result) {
  const Tensor& conv = input.conv;
  args.N = conv.size(0), args.C = conv.size(1), args.CH = conv.size(2), args.CW = conv.size(3);
  args.dtype = dtype_of(conv);
  args.conv = conv.data_ptr();
  copy_strides(conv, args.conv_strides);
  args.bias = input.bias ? input.bias->data_ptr() : nullptr;
  args.output = result.output.data_ptr();
  copy_strides(result.output, args.output_strides);
  args.record = result.has_record ? static_cast<uint8_t*>(result.record.data_ptr()) : nullptr;
}

void fill(BiasReluMaxpoolBackward& args, const PooledGradient& gradient, int64_t CH, int64_t CW,
          const ExpandedGradient& result) {
  const Tensor& g = gradient.grad_output;
  args.N = g.size(0), args.C = g.size(1), args.CH = CH, args.CW = CW;
  args.dtype = dtype_of(g);
  args.grad_output = g.data_ptr();
  copy_strides(g, args.grad_output_strides);
  args.record = args.pool.present ? static_cast<const uint8_t*>(gradient.saved.data_ptr()) : nullptr;
  args.output = args.pool.present ? nullptr : gradient.saved.data_ptr();
  args.grad_conv = result.grad_conv.data_ptr();
  copy_strides(result.grad_conv, args.grad_conv_strides);
  args.grad_bias = result.grad_bias.data_ptr();
}

}  // namespace fastdl
