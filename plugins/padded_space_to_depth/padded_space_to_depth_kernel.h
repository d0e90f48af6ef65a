// PaddedSpaceToDepth on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "plugins/common/tensor_types.h"

namespace maskrcnn {

// Device pointers, aligned to their elements. A block is 2 x 2 pixels of the padded image.
struct PaddedSpaceToDepthArguments {
  const void* images;       // (batch, channels, height, width): any values
  ElementType images_type;  // kFloat or kHalf
  void* blocks;             // (batch, 4 * channels, (top + height + bottom) / 2, (left + width + right) / 2)
  ElementType blocks_type;  // kFloat or kHalf
  TensorLayout blocks_layout;  // any but kNchw32
  int64_t batch;     // >= 0, as the three below
  int64_t channels;  // up to 4 in registers, where blocks_layout is kNhwc of kFloat or kNhwc8 of kHalf
  int64_t height;
  int64_t width;
  int64_t top;  // pixels of 0 on each side, >= 0; the padded height and width are even
  int64_t left;
  int64_t bottom;
  int64_t right;
};

// One launch; needs no workspace. Writes every element of the output, the channels that pad kNhwc8 as zeros.
// Returns cudaErrorInvalidValue where an argument is out of range.
cudaError_t launch_padded_space_to_depth(const PaddedSpaceToDepthArguments& arguments, cudaStream_t stream);

}  // namespace maskrcnn
