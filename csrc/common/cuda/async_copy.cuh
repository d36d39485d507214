// Global to shared memory without registers in between: cp.async (sm_80), bulk copies with mbarriers (sm_90).
#pragma once
#include <cstdint>

namespace fd {

FD_DEVICE unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// 16 bytes, zeros where not `valid` (nothing is read then). Before sm_80 a plain copy through registers.
FD_DEVICE void cp_async16(void* to, const void* from, bool valid = true) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  *static_cast<uint4*>(to) = valid ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
#endif
}
FD_DEVICE void cp_async_commit() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most kLeft of this thread's groups are still under way.
template <int kLeft>
FD_DEVICE void cp_async_wait() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

// What follows ends the kernel before sm_90.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define FD_SM90(instruction) instruction
#else
#define FD_SM90(instruction) __trap()
#endif
FD_DEVICE void mbarrier_init(uint64_t* p, int count) {
  FD_SM90(asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1; fence.mbarrier_init.release.cluster;" ::"r"(shared_address(p)),
      "r"(count) : "memory"));
}
// bytes > 0: also announces them.
FD_DEVICE void mbarrier_arrive(uint64_t* p, int bytes = 0) {
  if (bytes)
    FD_SM90(asm volatile(
        "{ .reg .b64 t; mbarrier.arrive.expect_tx.shared::cta.b64 t, [%0], %1; }" ::"r"(shared_address(p)),
        "r"(bytes) : "memory"));
  else
    FD_SM90(asm volatile(
        "{ .reg .b64 t; mbarrier.arrive.shared::cta.b64 t, [%0]; }" ::"r"(shared_address(p)) : "memory"));
}
FD_DEVICE void mbarrier_wait(uint64_t* p, int parity) {
  FD_SM90(
      asm volatile("{ .reg .pred done;\n"
                   "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                   "@!done bra again; }" ::"r"(shared_address(p)),
                   "r"(parity) : "memory"));
}
FD_DEVICE void bulk_copy(void* to, const void* from, int bytes, uint64_t* p) {
  FD_SM90(asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(p)) : "memory"));
}
#undef FD_SM90

}  // namespace fd
