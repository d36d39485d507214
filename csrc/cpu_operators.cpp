// Every operator of the CPU build in one source: torch's headers take longer to compile than all that follows
// them.
#include "common/facts_torch.cpp"
#include "common/thread_pool_torch.cpp"
#include "ops/attention/attention_args_torch.cpp"
#include "ops/attention/attention_torch.cpp"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_args_torch.cpp"
#include "ops/conv_relu_maxpool/conv_relu_maxpool_torch.cpp"
#include "ops/diffusion/diffusion_args_torch.cpp"
#include "ops/diffusion/diffusion_torch.cpp"
#include "ops/linear/linear_torch.cpp"
#include "ops/rnn/rnn_args_torch.cpp"
#include "ops/rnn/rnn_torch.cpp"
#include "ops/sublayer/sublayer_torch.cpp"
