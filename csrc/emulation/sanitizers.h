// What AddressSanitizer and ThreadSanitizer must be told about fibers and about CUDA's memory order.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN(x) x
#else
#define EMU_ASAN(x)
#endif

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void* __tsan_get_current_fiber();
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_write_range(void*, unsigned long);
void __tsan_read_range(void*, unsigned long);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
namespace emu {
// The emulator's own reads and writes are not the kernel's: without this its tables would order everything.
struct Quiet {
  Quiet() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  ~Quiet() { AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0); }
};
}  // namespace emu
#define EMU_TSAN(x) x
#define EMU_QUIET ::emu::Quiet emu_quiet_;
#define EMU_UNTRACKED __attribute__((no_sanitize("thread")))
#else
#define EMU_TSAN(x)
#define EMU_QUIET
#define EMU_UNTRACKED
#endif

#define EMU_ACQUIRE(p) EMU_TSAN(__tsan_acquire((void*)(p)))
#define EMU_RELEASE(p) EMU_TSAN(__tsan_release((void*)(p)))
