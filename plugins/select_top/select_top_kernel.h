// SelectTop on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace maskrcnn {

constexpr int32_t kSelectTopMaxK = 4096;            // what one block sorts in shared memory
constexpr int32_t kSelectTopMaxScores = 1 << 24;  // per row

// Device pointers, dense arrays, aligned to 4 bytes.
struct SelectTopArguments {
  const float* scores;  // (batch, num_scores): any floats; NaN counts as the lowest
  int32_t batch;        // >= 0
  int32_t num_scores;   // k to kSelectTopMaxScores
  int32_t k;            // 1 to kSelectTopMaxK
  float* values;        // (batch, k): best first, equal ones by ascending index, NaN last; bits as in the input
  int32_t* indices;     // (batch, k): where in the row they are
};

// Bytes of scratch for inputs of up to this size; grows with each argument: about k bytes per 1024 scores.
size_t select_top_workspace_size(int32_t batch, int32_t num_scores, int32_t k);

// Enqueues one to three kernels on `stream`, as many as the shapes say; no host synchronisation and no allocation, so
// that it can be captured in a graph. Results do not depend on the order in which blocks run.
// workspace: device memory, aligned to 256 bytes; it may hold anything, and may be null where its size is 0.
// Returns cudaErrorInvalidValue where an argument is out of range or the workspace is too small.
cudaError_t launch_select_top(const SelectTopArguments& arguments, void* workspace, size_t workspace_size,
                              cudaStream_t stream);

}  // namespace maskrcnn
