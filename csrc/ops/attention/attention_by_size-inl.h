// Attention in fp32 by tiles where they are filled and every number fits them, else on vectors. Saves what
// either saves. Included by foreach_isa.h where the instruction set has FASTDL_SPLIT_TILES: no include guard.

// Where tiles save more than packing costs: sequences that are long enough on average.
FASTDL_INLINE bool fills_tiles(const AttentionCall& c) {
  constexpr int64_t kFewestRows = 128, kFewestKeys = 128, kNarrowest = 48, kFewestProducts = 1 << 21;
  const int64_t sequences = c.cu_seqlens_q != nullptr ? c.B : 1;
  if (sequences == 0) return false;
  const int64_t rows = c.H / c.H_kv * c.L_q / sequences, keys = c.L_k / sequences;
  return !c.decode && rows >= kFewestRows && keys >= kFewestKeys && c.D >= kNarrowest &&
         c.D_v >= kNarrowest && rows * keys * (c.D + c.D_v) / 2 >= kFewestProducts;
}

static void forward_by_size(const AttentionForward& args, const ThreadPool& pool) {
  if (!fills_tiles(args.c) || !forward_by<float, SplitForward>(args, pool)) kOnVectors[0].forward(args, pool);
}
static void backward_by_size(const AttentionBackward& args, const ThreadPool& pool) {
  if (!fills_tiles(args.c) || !backward_by<float, SplitBackward>(args, pool))
    kOnVectors[0].backward(args, pool);
}
