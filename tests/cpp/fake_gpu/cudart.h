// For the other fakes: what a kernel does, put on a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

using Work = std::function<void()>;

void fake_cuda_enqueue(cudaStream_t stream, Work work);

// There is no memory for the next allocation on the device or of page-locked memory; then there is again.
void fake_cuda_refuse(bool is_pinned);
