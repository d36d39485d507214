// The product of linear, called: by tiles where they are faster, else by vectors.
// Work is split by the rectangles of product_cut-inl.h. Saves nothing.

#if FASTDL_ISA == FASTDL_ISA_AVX512BF16
using avx512::kProduct;
#else

#include "common/cpu/dot-inl.h"
#include "common/cpu/gemm-inl.h"
#include "common/cpu/tiles-inl.h"
//
#include "ops/linear/product_pack-inl.h"
//
#include "ops/linear/product_cut-inl.h"
//
#include "ops/linear/product_few_rows-inl.h"
//
#include "ops/linear/product-inl.h"
#if FASTDL_SPLIT_TILES
#include "common/cpu/tile_gemm-inl.h"
//
#include "common/cpu/split_gemm-inl.h"
//
#include "ops/linear/product_split-inl.h"
#endif

inline void product_by_size(const LinearProduct& p, const ThreadPool& pool) {
#if FASTDL_SPLIT_TILES
  if (splits(p) && split_product(p, pool)) return;
#endif
  product(p, pool);
}

typedef void (*ProductFunction)(const LinearProduct&, const ThreadPool&);
constexpr ProductFunction kProduct[] = {product_by_size};
#endif
