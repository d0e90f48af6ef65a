// SelectMasks on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "plugins/common/tensor_types.h"

namespace maskrcnn {

// Device pointers, aligned to their elements.
struct SelectMasksArguments {
  const void* logits;         // (num_masks, channels, num_pixels): any values
  ElementType logits_type;    // kFloat or kHalf
  TensorLayout logits_layout;
  const int32_t* labels;      // (num_masks,): the channel; negative: none; too large: the last
  int64_t num_masks;          // batch * detections per image; >= 0
  int64_t channels;           // classes, or 1; >= 1
  int64_t num_pixels;         // height * width of a mask; >= 0
  float* masks;               // (num_masks, num_pixels) probabilities; zeros where there is no channel
};

// One launch; needs no workspace. Reads one channel of each mask, writes every element of the output.
// Returns cudaErrorInvalidValue where an argument is out of range.
cudaError_t launch_select_masks(const SelectMasksArguments& arguments, cudaStream_t stream);

}  // namespace maskrcnn
