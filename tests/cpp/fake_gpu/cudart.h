// For the other fakes: what a kernel does, put on a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

using Work = std::function<void()>;

void fake_cuda_enqueue(cudaStream_t stream, Work work);
