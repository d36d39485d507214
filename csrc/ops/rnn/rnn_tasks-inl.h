// How the steps of a call run: shares of the sequences side by side, or all workers through the rounds of one
// share together, so that each round's blocks are done before the next begins. Saves nothing.

// Runs `steps` steps of every task; tasks[d * shares + share].
template <class Task>
void run_tasks(Task* tasks, const RnnSplit& split, int64_t directions, int64_t steps,
               const ThreadPool& pool) {
  const int64_t count = split.shares * directions;
  if (split.blocks == 1) {
    parallel_tasks(pool, count, [&](int64_t k, int64_t) {
      tasks[k].begin();
      for (int64_t i = 0; i < steps; ++i)
        for (int64_t phase = 0; phase < Task::kPhases; ++phase)
          if (tasks[k].blocks_of(i, phase) > 0) tasks[k].run(i, phase, 0);
    });
    return;
  }
  for (int64_t k = 0; k < count; ++k) tasks[k].begin();
  parallel_rounds(
      pool, split.workers, steps * Task::kPhases,
      [&](int64_t round) { return count * tasks[0].blocks_of(round / Task::kPhases, round % Task::kPhases); },
      [&](int64_t round, int64_t block) {
        tasks[block / split.blocks].run(round / Task::kPhases, round % Task::kPhases, block % split.blocks);
      });
}
