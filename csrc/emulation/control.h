// What a test sets and reads, by ctypes.
#pragma once
#include "emulation/cuda.h"

extern "C" {

void emulation_set_schedule(int schedule) { emu::options.schedule = schedule; }

void emulation_set_largest_cluster(unsigned blocks) { emu::options.largest_cluster = blocks; }

void emulation_set_largest_shared(unsigned bytes) { emu::options.largest_shared = bytes; }

void emulation_set_multiprocessors(unsigned count) { emu::options.multiprocessors = count; }

// The first complaint since the last call, or null.
const char* emulation_take_error() {
  static std::string taken;
  taken = std::move(emu::machine.error);
  emu::machine.error.clear();
  return taken.empty() ? nullptr : taken.c_str();
}

long emulation_switches() { return emu::machine.switches; }

}  // extern "C"

// Tests read argument structs from their header: this says what the compiler made of one.
#define EMULATION_SIZE_OF(Struct) \
  extern "C" int64_t emulation_size_of_##Struct() { return sizeof(Struct); }
