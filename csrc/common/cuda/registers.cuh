// What the compiler may keep in registers.
#pragma once

namespace fd {

// x, but the compiler does not know that: what is computed from it in a loop is not kept for the next turn.
FD_DEVICE int computed_anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace fd
