#include "ops/attention/attention_cpu.h"

#include <cmath>
#include <limits>
#include <vector>

#include "common/cpu/scratch.h"
#include "common/philox.h"
#include "ops/attention/attention_span.h"

namespace fastdl::cpu {
namespace {

struct AttentionKernels {
  void (*forward)(const AttentionForward& args, const ThreadPool& pool);
  void (*backward)(const AttentionBackward& args, const ThreadPool& pool);
  void (*weights)(const AttentionWeights& args, const ThreadPool& pool);
};

}  // namespace
}  // namespace fastdl::cpu

#define FASTDL_ISA_SOURCE "ops/attention/attention_cpu-inl.h"
#define FASTDL_ISA_MAX FASTDL_ISA_AMX
#include "common/cpu/foreach_isa.h"

namespace fastdl::cpu {

void attention_forward(const AttentionForward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kAttention)[static_cast<int>(args.c.dtype)].forward(args, pool);
}

void attention_backward(const AttentionBackward& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kAttention)[static_cast<int>(args.c.dtype)].backward(args, pool);
}

void attention_weights(const AttentionWeights& args, const ThreadPool& pool) {
  FASTDL_ISA_SELECT(kAttention)[static_cast<int>(args.forward.c.dtype)].weights(args, pool);
}

}  // namespace fastdl::cpu
