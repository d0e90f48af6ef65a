// DecodeDetections on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "plugins/common/box_decoding.h"
#include "plugins/common/tensor_types.h"

namespace maskrcnn {

constexpr int32_t kDecodeDetectionsMaxClasses = 1 << 24;

// Device pointers, dense arrays. deltas, proposals and boxes must be aligned to 16 bytes (any allocation is), the rest
// to its elements.
struct DecodeDetectionsArguments {
  const void* logits;        // (batch, num_proposals, num_classes + 1): the background comes last
  ElementType logits_type;   // kFloat or kHalf
  const void* deltas;        // (batch, num_proposals, 4 * num_classes), or 4 where class_agnostic
  ElementType deltas_type;   // kFloat or kHalf
  const float* proposals;    // (batch, num_proposals, 4): [x1, y1, x2, y2] in px
  const int32_t* count;      // (batch,): proposals of each image that are real; any number
  const float* image_sizes;  // (batch, 2): height, width in px
  int32_t batch;             // >= 0
  int32_t num_proposals;     // per image; >= 0
  int32_t num_classes;       // without the background; 1 to kDecodeDetectionsMaxClasses
  bool class_agnostic;       // one box of a proposal, for all classes
  BoxDecoding decoding;
  float* boxes;   // (batch, num_proposals * num_classes, 4): candidate p * num_classes + c
  float* scores;  // (batch, num_proposals * num_classes): probabilities; kNoCandidate past the count; NaN of NaN logits
};

// One launch; needs no workspace. Writes every element of both outputs.
// Returns cudaErrorInvalidValue where an argument is out of range or not aligned.
cudaError_t launch_decode_detections(const DecodeDetectionsArguments& arguments, cudaStream_t stream);

}  // namespace maskrcnn
