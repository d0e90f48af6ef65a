// DecodeProposals on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "plugins/common/box_decoding.h"
#include "plugins/common/tensor_types.h"
#include "plugins/decode_proposals/decode_proposals_math.h"

namespace maskrcnn {

struct ProposalLevel {
  const void* logits;  // (batch, num_anchors, height, width)
  const void* deltas;  // (batch, num_anchors * 4, height, width): [dx, dy, dw, dh] of each anchor
  int32_t height;      // >= 1; height * width * num_anchors up to kSelectTopMaxScores
  int32_t width;       // >= 1
  int32_t top;         // rows of the result, 1 to kSelectTopMaxK
  float stride_x;      // px from place to place, above 0; or both 0: see priors
  float stride_y;
};

// Device pointers, aligned to their elements. N: the anchors of all levels, of levels with strides those of one place;
// M: the sum of their `top`.
struct DecodeProposalsArguments {
  ProposalLevel levels[kDecodeProposalsMaxLevels];
  int32_t num_levels;        // 1 to kDecodeProposalsMaxLevels
  int32_t batch;             // >= 0; 0 launches nothing
  int32_t num_anchors;       // >= 1, of a pixel
  ElementType map_type;      // kFloat or kHalf: of logits and deltas
  TensorLayout map_layout;   // any: of logits and deltas
  const float* priors;       // (N, 4): level after level, in a level by y, x, anchor; with strides, of place 0, 0
  const float* image_sizes;  // (batch, 2): height, width in px
  BoxDecoding decoding;
  float min_size;  // px; below 0: every box stays
  float* boxes;    // (batch, M, 4): level after level, in a level best first, ties by anchor, NaN last
  float* scores;   // (batch, M): kNoCandidate where there is no anchor, or its box is too small
};

// Bytes of scratch; grows with the batch and with the size of each level.
size_t decode_proposals_workspace_size(const DecodeProposalsArguments& arguments);

// Enqueues two to four kernels on `stream` for all levels and images, as many as the shapes say; no host
// synchronisation and no allocation, so that it can be captured in a graph. Results do not depend on the order in which
// blocks run.
// workspace: device memory, aligned to 256 bytes; it may hold anything.
// Returns cudaErrorInvalidValue where an argument is out of range or the workspace is too small.
cudaError_t launch_decode_proposals(const DecodeProposalsArguments& arguments, void* workspace, size_t workspace_size,
                                    cudaStream_t stream);

}  // namespace maskrcnn
