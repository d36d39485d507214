// Asks for the lines of an output that a task will write while the one before multiplies. Computes nothing.
// Included by foreach_isa.h sources only: no include guard.

// Planes are written in short runs that no hardware prefetcher follows, and a line not owned costs more than
// the transpose: ask for `per_tile` of the lines to come between two tiles.
struct Ahead {
  char* line;         // the next line
  int64_t plane;      // bytes from one run to the next
  int64_t run, left;  // lines of a run, and left of this one
  int64_t runs;       // left
  int64_t per_tile;
};

FASTDL_INLINE Ahead look_ahead(void* output, int64_t plane, int64_t positions, int64_t channels, int64_t size,
                               int64_t tiles) {
  const int64_t run = positions * size / 64 + 1;
  return {static_cast<char*>(output), plane * size, run, run, channels, (run * channels + tiles - 1) / tiles};
}

FASTDL_INLINE void ask(Ahead* ahead) {
  for (int64_t i = ahead->runs > 0 ? ahead->per_tile : 0; i > 0 && ahead->runs > 0; --i) {
    __builtin_prefetch(ahead->line, 1);
    ahead->line += 64;
    if (--ahead->left == 0) {
      ahead->line += ahead->plane - 64 * ahead->run;
      ahead->left = ahead->run;
      --ahead->runs;
    }
  }
}
