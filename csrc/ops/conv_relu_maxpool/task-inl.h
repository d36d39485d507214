// What a task of a convolution without a transform reads, and when one thread takes them all.

// The conv rows under output rows [begin, end) and the input rows under those.
FASTDL_INLINE Range conv_rows(const ConvGeometry& g, const PoolGeometry& p, Range rows) {
  if (!p.present) return rows;
  const int64_t first = rows.begin * p.stride[0] - p.padding[0];
  const int64_t end = (rows.end - 1) * p.stride[0] - p.padding[0] + (p.size[0] - 1) * p.dilation[0] + 1;
  return {first > 0 ? first : 0, smaller(end, g.CH)};
}
FASTDL_INLINE Range input_rows(const ConvGeometry& g, Range conv) {
  return {conv.begin * g.stride[0] - g.padding[0],
          (conv.end - 1) * g.stride[0] - g.padding[0] + (g.KH - 1) * g.dilation[0] + 1};
}

// Below this many multiply-adds a parallel region costs more than it saves.
constexpr int64_t kSerialWork = 1 << 18;
