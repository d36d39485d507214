// What was built and chosen, as operators that return integers: `fastdl info` formats them.
#include "common/cpu/isa.h"
#include "common/torch_glue.h"

namespace fastdl {
namespace {

int64_t cpu_isa() { return static_cast<int64_t>(cpu::current_isa()); }
int64_t best_cpu_isa() { return static_cast<int64_t>(cpu::best_isa()); }
bool cpu_is_amd() { return cpu::is_amd(); }
bool cpu_halves_vectors() { return cpu::halves_vectors(); }

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_IMPL(fastdl, CompositeExplicitAutograd, m) {
  m.impl("_cpu_isa", TORCH_BOX(&fastdl::cpu_isa));
  m.impl("_best_cpu_isa", TORCH_BOX(&fastdl::best_cpu_isa));
  m.impl("_cpu_is_amd", TORCH_BOX(&fastdl::cpu_is_amd));
  m.impl("_cpu_halves_vectors", TORCH_BOX(&fastdl::cpu_halves_vectors));
}
