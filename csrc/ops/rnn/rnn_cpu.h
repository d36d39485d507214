// The CPU kernels of rnn, each compiled for every instruction set and picked once per process.
#pragma once
#include "common/cpu/parallel.h"
#include "ops/rnn/rnn.h"

namespace fastdl::cpu {

// Every structure; fp32, fp16, bf16; fp32 inside. Results do not depend on the number of threads.
void rnn_forward(const RnnForward& args, const ThreadPool& pool);
void rnn_backward(const RnnBackward& args, const ThreadPool& pool);

}  // namespace fastdl::cpu
