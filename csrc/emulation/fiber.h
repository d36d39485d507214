// One stack per CUDA thread and the switch between them (x86-64).
#pragma once
#include <csignal>
#include <cstdlib>

#include "emulation/state.h"

extern "C" void emu_switch(void** save, void* load);

#if defined(__x86_64__)
constexpr int kSavedWords = 6;
asm(R"(
.text
.weak emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi); movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emu_switch,.-emu_switch
)");
#else
#error "The emulation switches stacks in x86-64 assembly"
#endif

namespace emu {

EMU_UNTRACKED inline void to_scheduler(bool dying = false) {
  Thread* thread = self;
  (void)dying;
  EMU_ASAN(__sanitizer_start_switch_fiber(dying ? nullptr : &thread->asan, machine.host_stack,
                                          machine.host_stack_bytes);)
  EMU_TSAN(__tsan_switch_to_fiber(machine.tsan, 1);)
  emu_switch(&thread->stack_pointer, machine.stack_pointer);
  EMU_ASAN(__sanitizer_finish_switch_fiber(thread->asan, &machine.host_stack, &machine.host_stack_bytes);)
}

EMU_UNTRACKED inline void thread_entry() {
  EMU_ASAN(__sanitizer_finish_switch_fiber(nullptr, &machine.host_stack, &machine.host_stack_bytes);)
  EMU_ACQUIRE(&machine.start_token);
  (*machine.body)();
  {
    EMU_QUIET EMU_RELEASE(&machine.end_token);
    self->status = Status::kDone;
  }
  to_scheduler(true);
  abort();
}

EMU_UNTRACKED inline void resume(Thread* thread) {
  self = thread;
  ++machine.switches;
  EMU_ASAN(__sanitizer_start_switch_fiber(&machine.asan, thread->stack, kStackBytes);)
  EMU_TSAN(__tsan_switch_to_fiber(thread->tsan, 1);)
  emu_switch(&machine.stack_pointer, thread->stack_pointer);
  EMU_ASAN(__sanitizer_finish_switch_fiber(machine.asan, nullptr, nullptr);)
  self = nullptr;
}

// Inside every loop that waits for another thread's store.
EMU_UNTRACKED inline void spin() {
  EMU_QUIET self->status = Status::kSpinning;
  to_scheduler();
}

inline void prepare_stack(Thread& thread, char* stack) {
  thread.stack = stack;
  *reinterpret_cast<uint64_t*>(stack) = kCanary;
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(thread_entry);
  for (int i = 0; i < kSavedWords; ++i) *--top = nullptr;
  thread.stack_pointer = top;
  EMU_TSAN(thread.tsan = __tsan_create_fiber(0);)
}

// A kernel that touches a guard page is reported and abandoned, not the whole process killed.
class CatchFaults {
 public:
  CatchFaults() {
#if !defined(__SANITIZE_ADDRESS__)
    struct sigaction action = {};
    action.sa_handler = [](int) {
      if (!self) abort();
      fail("access outside a buffer (guard page)", self->site);
      to_scheduler(true);
    };
    action.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &action, &segv_);
    sigaction(SIGBUS, &action, &bus_);
#endif
  }
  ~CatchFaults() {
#if !defined(__SANITIZE_ADDRESS__)
    sigaction(SIGSEGV, &segv_, nullptr);
    sigaction(SIGBUS, &bus_, nullptr);
#endif
  }

 private:
  struct sigaction segv_ = {}, bus_ = {};
};

}  // namespace emu
