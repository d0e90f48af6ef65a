// Which level of the feature pyramid an RoI is read from.
#pragma once

#include <cmath>

#include "plugins/common/host_device.h"

namespace maskrcnn {

// mmdet's SingleRoIExtractor.map_roi_levels: floor(log2(sqrt(area) / finest_scale + 1e-6)) clamped to the levels,
// written as comparisons, because log2 of a value just under a power of 2 may round up. RoIs without a size (NaN or a
// negative area) are read from level 0. Always float32: in half precision areas overflow at 256 x 256 px.
// roi: [batch_index, x1, y1, x2, y2] in input px.
MASKRCNN_HOST_DEVICE int roi_level(const float* roi, float finest_scale, int num_levels) {
  const float relative = sqrtf((roi[3] - roi[1]) * (roi[4] - roi[2])) / finest_scale + 1e-6f;
  int level = 0;
  float lower_bound = 2.f;
  for (int k = 1; k < num_levels; ++k, lower_bound *= 2.f) {
    if (relative >= lower_bound) ++level;
  }
  return level;
}

}  // namespace maskrcnn
