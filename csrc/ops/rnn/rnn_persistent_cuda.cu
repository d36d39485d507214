// The recurrence of a layer, whole sequences in one launch, by clusters or by a cooperative grid.
// How work is split: persistent.cuh. Saves for backward what rnn.h names.
#include "ops/rnn/persistent_launch.cuh"
#include "ops/rnn/rnn_cuda.h"

namespace fastdl::cuda {
namespace {

constexpr const char* kTooLargeForClusters =
    "the recurrent weights do not fit into a cluster, or the batch takes too many of them";
constexpr const char* kTooLargeForGrid =
    "the recurrent weights do not fit into blocks that run at once, or the batch takes too many of them";

}  // namespace

const char* rnn_persistent_forward_refusal(const RnnForward& p) {
  return refusal<Cluster>(p, kTooLargeForClusters);
}
int64_t rnn_persistent_forward_workspace(const RnnForward& p) { return workspace_of<Cluster>(p); }
cudaError_t rnn_persistent_forward(const RnnForward& p, void* workspace, cudaStream_t stream) {
  return enqueue<Cluster>(p, workspace, stream);
}
const char* rnn_persistent_backward_refusal(const RnnBackward& p) {
  return refusal<Cluster>(p, kTooLargeForClusters);
}
int64_t rnn_persistent_backward_workspace(const RnnBackward& p) { return workspace_of<Cluster>(p); }
cudaError_t rnn_persistent_backward(const RnnBackward& p, void* workspace, cudaStream_t stream) {
  return enqueue<Cluster>(p, workspace, stream);
}

const char* rnn_grid_forward_refusal(const RnnForward& p) { return refusal<Grid>(p, kTooLargeForGrid); }
int64_t rnn_grid_forward_workspace(const RnnForward& p) { return workspace_of<Grid>(p); }
cudaError_t rnn_grid_forward(const RnnForward& p, void* workspace, cudaStream_t stream) {
  return enqueue<Grid>(p, workspace, stream);
}
const char* rnn_grid_backward_refusal(const RnnBackward& p) { return refusal<Grid>(p, kTooLargeForGrid); }
int64_t rnn_grid_backward_workspace(const RnnBackward& p) { return workspace_of<Grid>(p); }
cudaError_t rnn_grid_backward(const RnnBackward& p, void* workspace, cudaStream_t stream) {
  return enqueue<Grid>(p, workspace, stream);
}

}  // namespace fastdl::cuda
