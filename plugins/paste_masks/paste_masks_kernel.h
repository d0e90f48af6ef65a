// PasteMasks on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "plugins/common/tensor_types.h"

namespace maskrcnn {

struct PasteMasksArguments {
  const void* masks;      // (num_masks, mask_height, mask_width) probabilities
  ElementType mask_type;  // kFloat or kHalf
  const float* boxes;     // (num_masks, 4): [x1, y1, x2, y2] in px of the output
  int64_t num_masks;      // batch * masks per image; >= 0
  int mask_height;        // >= 1
  int mask_width;         // >= 1
  int height;             // of the output, 0 to 2^24
  int width;              // likewise
  float threshold;        // 1 where the probability is at least this
  void* output;           // (num_masks, height, width) of 0 and 1
  ElementType output_type;
};

// One launch; needs no workspace. Writes every element of the output.
// Returns cudaErrorInvalidValue where an argument is out of range.
cudaError_t launch_paste_masks(const PasteMasksArguments& arguments, cudaStream_t stream);

}  // namespace maskrcnn
