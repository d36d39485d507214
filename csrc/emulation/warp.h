// Warp collectives: all lanes of the mask must arrive at the same line with the same mask.
#pragma once
#include "emulation/fiber.h"

namespace emu {

// Every lane deposits its arguments; the last to arrive runs `combine` over all of them.
template <class Arguments, class Combine>
EMU_UNTRACKED inline void warp_collective(unsigned mask, Arguments& arguments, Combine combine, Site site,
                                          bool orders_memory = false) {
  EMU_QUIET Warp* warp = self->warp;
  Thread* leader = warp->lane[__builtin_ctz(mask ? mask : 1)];
  char* token = leader ? &leader->token[leader->phase & 1] : nullptr;
  (void)token;
  if (!(mask >> self->lane & 1)) fail("warp collective: the calling lane is not in the mask", site);
  self->arguments = &arguments;
  self->mask = mask;
  self->site = site;
  self->status = Status::kInWarp;
  if (orders_memory) EMU_RELEASE(token);
  Arguments* all[32] = {};
  bool complete = true;
  for (int i = 0; i < 32 && complete; ++i) {
    if (!(mask >> i & 1)) continue;
    Thread* lane = warp->lane[i];
    if (!lane || lane->status == Status::kDone) {
      fail("warp collective: the mask names a lane that has exited or does not exist", site);
      continue;
    }
    complete =
        lane->status == Status::kInWarp && lane->site.line == site.line && lane->site.file == site.file;
    if (!complete) break;
    if (lane->mask != mask) fail("warp collective: lanes disagree on the mask", site);
    all[i] = static_cast<Arguments*>(lane->arguments);
  }
  if (complete) {
    combine(all);
    if (leader) ++leader->phase;
    for (int i = 0; i < 32; ++i)
      if (all[i]) warp->lane[i]->status = Status::kReady;
  }
  to_scheduler();
  if (orders_memory) EMU_ACQUIRE(token);
}

template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
  struct Arguments {
    T value, result;
    int source;
  } arguments{value, value, source};
  warp_collective(
      mask, arguments,
      [&](Arguments** all) {
        for (int i = 0; i < 32; ++i) {
          if (!all[i]) continue;
          Arguments* from = all[all[i]->source & 31];
          if (from)
            all[i]->result = from->value;
          else
            fail("shuffle reads a lane outside the mask", site);
        }
      },
      site);
  return arguments.result;
}

// The lane itself where the source falls outside its segment of `width` lanes.
inline int shuffle_source(int source, int width) {
  int base = self->lane & ~(width - 1);
  return source >= base && source < base + width ? source : self->lane;
}

}  // namespace emu

inline void __syncwarp(unsigned mask = ~0u, EMU_SITE) {
  int nothing = 0;
  emu::warp_collective(mask, nothing, [](int**) {}, {file, line}, true);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_SITE) {
  return emu::shuffle(mask, value, (emu::self->lane & ~(width - 1)) | (source & (width - 1)), {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32, EMU_SITE) {
  return emu::shuffle(mask, value, emu::shuffle_source(emu::self->lane ^ distance, width), {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int distance, int width = 32, EMU_SITE) {
  return emu::shuffle(mask, value, emu::shuffle_source(emu::self->lane + distance, width), {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int distance, int width = 32, EMU_SITE) {
  return emu::shuffle(mask, value, emu::shuffle_source(emu::self->lane - distance, width), {file, line});
}
inline unsigned __ballot_sync(unsigned mask, bool predicate, EMU_SITE) {
  struct Arguments {
    bool predicate;
    unsigned result;
  } arguments{predicate, 0};
  emu::warp_collective(mask, arguments,
                       [](Arguments** all) {
                         unsigned result = 0;
                         for (int i = 0; i < 32; ++i)
                           if (all[i] && all[i]->predicate) result |= 1u << i;
                         for (int i = 0; i < 32; ++i)
                           if (all[i]) all[i]->result = result;
                       },
                       {file, line});
  return arguments.result;
}
inline bool __any_sync(unsigned mask, bool predicate, EMU_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline bool __all_sync(unsigned mask, bool predicate, EMU_SITE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}
