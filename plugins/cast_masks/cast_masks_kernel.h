// Masks as TensorRT 8 puts them out, float32, into uint8 on the GPU: a quarter of the bytes to copy.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace maskrcnn {

struct CastMasksArguments {
  const float* values;
  int64_t num_values;  // >= 0
  uint8_t* output;     // num_values bytes
};

// One launch; needs no workspace. Fastest where `values` lies at a multiple of 16 bytes and `output` at one of 4.
// Returns cudaErrorInvalidValue where an argument is out of range.
cudaError_t launch_cast_masks(const CastMasksArguments& arguments, cudaStream_t stream);

}  // namespace maskrcnn
