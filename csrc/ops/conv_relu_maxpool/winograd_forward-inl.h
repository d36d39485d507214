// relu(max_pool2d(conv2d(x, weight)) + bias) as one fused Winograd convolution.
// The weight is packed by panels, then the groups of tiles run; both in parallel. Saves the record.

template <class T>
void forward_of(const ConvReluMaxpoolForward& args, const ThreadPool& pool) {
  const ConvGeometry& g = args.conv;
  if (g.N == 0 || g.C_out == 0 || args.pool.OH == 0 || args.pool.OW == 0) return;
  const int64_t OH = args.pool.present && 2 * args.pool.OH < g.CH ? 2 * args.pool.OH : g.CH;
  const int64_t OW = args.pool.present && 2 * args.pool.OW < g.CW ? 2 * args.pool.OW : g.CW;
  Convolution conv;
  conv.shape = {g.N, g.C, g.H, g.W, g.C_out, OH, OW, {g.padding[0], g.padding[1]}};
  conv.emission = !args.pool.present ? Emission::kRelu : args.record ? Emission::kPoolWithRecord : Emission::kPool;
  const ImageSource source = {args.x, args.x_strides, 0};
  conv.source = &source;
  conv.stage = stage_image<T>;
  conv.weight = {args.weight, g.C_out, g.C, 9 * g.C, 9, false};

  conv.target = {args.output, args.record, args.output_strides, g.C_out, args.pool.OH, args.pool.OW, g.CH, g.CW, args.bias, nullptr};
  convolve_packing<T>(conv, pool);
}

static void forward(const ConvReluMaxpoolForward& args, const ThreadPool& pool) {
  switch (args.dtype) {
    case DType::kFloat16: return forward_of<Float16>(args, pool);
    case DType::kBFloat16: return forward_of<BFloat16>(args, pool);
    default: return forward_of<float>(args, pool);
  }
}
