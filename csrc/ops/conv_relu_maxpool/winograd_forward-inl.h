// relu(max_pool2d(conv2d(x, weight)) + bias) as one fused Winograd convolution.
// The weight is packed by panels unless that was done, then the groups of tiles run; both in parallel. Saves
// the record.

FASTDL_INLINE PlainWeight forward_weight(const void* weight, int64_t K, int64_t C, bool channels_last) {
  return {weight, K, C, 9 * C, channels_last ? 1 : 9, channels_last ? C : 1, false};
}

static void pack(const PackableWeight& weight, float* u, const ThreadPool& pool) {
  const PlainWeight plain = forward_weight(weight.data, weight.K, weight.C, weight.channels_last);
  switch (weight.dtype) {
    case DType::kFloat16:
      return pack_weights<Float16>(plain, weight.tile, u, pool);
    case DType::kBFloat16:
      return pack_weights<BFloat16>(plain, weight.tile, u, pool);
    default:
      return pack_weights<float>(plain, weight.tile, u, pool);
  }
}

// What relu(max_pool2d(conv)) and a convolution with its epilogue have in common; Args: their arguments.
template <class T, class Args>
Convolution convolution_of(const Args& args, const ImageSource& source, const float* u) {
  Convolution conv;
  conv.shape = forward_shape(args);
  conv.source = &source;
  conv.stage = stage_image<T>;
  conv.reads = image_reads<T>;
  conv.weight = forward_weight(args.weight, args.conv.C_out, args.conv.C, args.weight_channels_last);
  conv.packed = u;
  return conv;
}

template <class T>
void forward_of(const ConvReluMaxpoolForward& args, const float* u, const ThreadPool& pool) {
  const ConvGeometry& g = args.conv;
  if (g.N == 0 || g.C_out == 0 || args.pool.OH == 0 || args.pool.OW == 0) return;
  const ImageSource source = {args.x, args.x_strides, 0};
  Convolution conv = convolution_of<T>(args, source, u);
  conv.emission = !args.pool.present ? Emission::kRelu
                  : args.record      ? Emission::kPoolWithRecord
                                     : Emission::kPool;
  conv.target = {args.output, args.record, args.output_strides, g.C_out, args.pool.OH, args.pool.OW, g.CH,
                 g.CW,        args.bias};
  plan_and_convolve<T>(conv, pool);
}

template <class T>
void conv2d_of(const Conv2dForward& args, const float* u, const ThreadPool& pool) {
  const ConvGeometry& g = args.conv;
  if (g.N == 0 || g.C_out == 0 || g.CH == 0 || g.CW == 0) return;
  const ImageSource source = {args.x, args.x_strides, 0};
  Convolution conv = convolution_of<T>(args, source, u);
  conv.emission = args.activation == Activation::kRelu && args.residual == nullptr ? Emission::kRelu
                                                                                   : Emission::kConvolution;
  conv.target = {args.output, nullptr, args.output_strides, g.C_out,    g.CH,          g.CW,
                 g.CH,        g.CW,    args.bias,           args.scale, args.residual, args.activation};
  plan_and_convolve<T>(conv, pool);
}

static void conv2d(const Conv2dForward& args, const float* u, const ThreadPool& pool) {
  switch (args.dtype) {
    case DType::kFloat16:
      return conv2d_of<Float16>(args, u, pool);
    case DType::kBFloat16:
      return conv2d_of<BFloat16>(args, u, pool);
    default:
      return conv2d_of<float>(args, u, pool);
  }
}

static void forward(const ConvReluMaxpoolForward& args, const float* u, const ThreadPool& pool) {
  switch (args.dtype) {
    case DType::kFloat16:
      return forward_of<Float16>(args, u, pool);
    case DType::kBFloat16:
      return forward_of<BFloat16>(args, u, pool);
    default:
      return forward_of<float>(args, u, pool);
  }
}
