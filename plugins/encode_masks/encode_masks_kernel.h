// Masks as COCO's compressed run lengths on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "plugins/encode_masks/encode_masks_math.h"

namespace maskrcnn {

// Device pointers, dense arrays, except `images`. Part of the C interface (plugins/encode_masks/encode_masks_c_api.cpp).
struct EncodeMasksArguments {
  const TargetImage* images;        // host array of `batch`; read before the call returns
  int32_t batch, max_dets;          // >= 0
  const float* masks;               // (batch, max_dets, mask_height, mask_width) probabilities
  const float* dets;                // (batch, max_dets, 5): x1 y1 x2 y2 score, network px
  const int32_t* num_dets;          // (batch,)
  int32_t mask_height, mask_width;  // 1 to kMaxMaskCells
  float threshold;                  // a pixel is set where the probability is at least this
  float min_score;                  // a detection whose score is not at least this has length 0, offset 0
  uint8_t* strings;                 // `capacity` bytes: every mask's string, back to back, in any order
  int64_t capacity;                 // >= 0
  int64_t* offsets;                 // (batch, max_dets): where a mask's string starts; -1 where it did not fit
  int32_t* lengths;                 // (batch, max_dets): its bytes, also where it did not fit; 0 past num_dets
  int64_t* used;                    // (1,): bytes needed in all; above capacity: run again with more
};

// Enqueues one kernel per 128 images, and one memset before them; no host synchronisation and no allocation, so that it
// can be captured in a graph: with the images' sizes as they are now. Strings are the same at every call, their order
// is not. No more than `capacity` bytes are written.
// Returns cudaErrorInvalidValue where an argument is out of range.
cudaError_t launch_encode_masks(const EncodeMasksArguments& arguments, cudaStream_t stream);

}  // namespace maskrcnn
