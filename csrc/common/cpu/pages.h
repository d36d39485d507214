// Pages of fresh memory.
#pragma once
#include <cstddef>

namespace fastdl::cpu {

// Asks for huge pages behind memory that nothing has touched yet, where it holds some: the first write to
// each 4 KB of 32 MB costs as much time as a product that fills them.
void use_huge_pages(void* memory, size_t bytes);

}  // namespace fastdl::cpu
