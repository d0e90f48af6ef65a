// GroupedNMS on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace maskrcnn {

// Device pointers, dense arrays. boxes must be aligned to 16 bytes (any allocation is), the rest to 4.
struct GroupedNmsArguments {
  const float* boxes;     // (batch, num_boxes, 4): [x1, y1, x2, y2] in px
  const float* scores;    // (batch, num_boxes): NaN takes no part
  const int32_t* groups;  // (groups_batch, num_boxes): any ids
  int32_t batch;          // >= 0
  int32_t groups_batch;   // batch, or 1: the same groups for every image
  int32_t num_boxes;      // >= 0
  int32_t max_output;     // >= 1
  float iou_threshold;
  float score_threshold;  // a candidate's score is above it; may be -inf
  // True: overlaps are those of boxes moved by group * (max coordinate + 1) in float32, as in mmcv's batched_nms, whose
  // rounding they then share bit for bit. False: those of the boxes as given. Ids are compared either way.
  bool shift_groups;
  int32_t* indices;  // (batch, max_output): by descending score, then ascending index; -1 past the count
  int32_t* count;    // (batch,)
};

// Bytes of scratch for inputs of up to this size: enough for every smaller one. Grows with batch * num_boxes: about 330 bytes per box up to 16384
// boxes per image, 100 beyond.
size_t grouped_nms_workspace_size(int32_t batch, int32_t num_boxes);

// Enqueues everything on `stream`; no host synchronisation and no allocation, so that it can be captured in a graph.
// workspace: device memory, aligned to 256 bytes; it may hold anything. Writes both outputs completely.
// Returns cudaErrorInvalidValue where an argument is out of range or the workspace is too small.
cudaError_t launch_grouped_nms(const GroupedNmsArguments& arguments, void* workspace, size_t workspace_size,
                               cudaStream_t stream);

}  // namespace maskrcnn
