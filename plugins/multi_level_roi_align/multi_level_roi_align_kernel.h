// MultiLevelRoiAlign on the GPU, and with one level RoIAlign as mmcv has it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "plugins/common/tensor_types.h"
#include "plugins/roi_align/roi_align_math.h"

namespace maskrcnn {

constexpr int kMaxRoiAlignLevels = 8;

struct RoiAlignLevel {
  const void* data;  // (batch, channels, height, width) in feature_layout; aligned to 16 bytes
  int height;        // >= 1
  int width;         // >= 1
  float spatial_scale;
  float feature_scale;  // > 0 with kInt8: what a step is worth
};

struct MultiLevelRoiAlignArguments {
  RoiAlignLevel levels[kMaxRoiAlignLevels];  // finest first
  int num_levels;                            // 1 to kMaxRoiAlignLevels; 1: plain RoIAlign, finest_scale is not read
  int64_t batch;                             // >= 0; an RoI with another batch index gives zeros
  int64_t channels;                          // >= 0
  ElementType feature_type;                  // kFloat or kHalf; kInt8 with an output of kInt8
  TensorLayout feature_layout;               // any, kNchw32 with kInt8; kNhwc8 with kFloat as well
  const float* rois;                         // (num_rois, 5): [batch_index, x1, y1, x2, y2] in input px
  int64_t num_rois;                          // >= 0; 0 launches nothing
  void* output;                              // (num_rois, channels, output_height, output_width); aligned to 16 bytes
  ElementType output_type;                   // kFloat, kHalf or kInt8
  TensorLayout output_layout;                // any, kNchw32 with kInt8; padding is written with zeros
  int output_height;                         // 1 to 32767
  int output_width;                          // 1 to 32767
  int sampling_ratio;                        // <= 0: adaptive
  PoolMode mode;
  bool aligned;
  float finest_scale;  // px: an RoI of area s * s is read from level floor(log2(s / finest_scale + 1e-6)), clamped
  float output_scale;  // > 0 with kInt8, which stores round_half_even(value / output_scale) within -128 to 127
};

// One launch for all RoIs and levels; needs no workspace. Coordinates, weights and sums are float32.
// Returns cudaErrorInvalidValue where an argument is out of range.
cudaError_t launch_multi_level_roi_align(const MultiLevelRoiAlignArguments& arguments, cudaStream_t stream);

}  // namespace maskrcnn
