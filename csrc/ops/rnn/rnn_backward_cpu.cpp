#include "common/cpu/rounds.h"
#include "common/cpu/scratch.h"
#include "ops/rnn/rnn_cpu.h"
#include "ops/rnn/rnn_plan.h"

#define FASTDL_ISA_SOURCE "ops/rnn/rnn_backward_cpu-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AMX
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void rnn_backward(const RnnBackward& args, const ThreadPool& pool) {
  const RnnPlan plan(args.q);
  const auto* by_dtype = FASTDL_ISA_SELECT(kRnnBackward)[static_cast<int>(args.q.s.cell)];
  by_dtype[static_cast<int>(args.q.dtype)](args, plan, pool);
}

}  // namespace fastdl::cpu
