// Per-pair maths of non-maximum suppression: which candidate comes first, and whether it suppresses another.
#pragma once

#include <cstdint>

#include "plugins/common/box.h"
#include "plugins/common/host_device.h"

namespace maskrcnn {

// offset: 1 where x2 and y2 are the last pixel inside the box (mmdet 1.x), 0 where they are its edge.
MASKRCNN_HOST_DEVICE float box_area(const Box& box, float offset) {
  return unfused_product(box.x2 - box.x1 + offset, box.y2 - box.y1 + offset);
}

// Whether `kept`, which ranks first, removes `other`. Operation by operation what mmcv's nms_cpu does
// (mmcv/ops/csrc/pytorch/cpu/nms.cpp), so that float32 results agree to the last bit. A pair whose overlap is NaN (NaN
// coordinates, two boxes without area, an infinite box) is not suppressed.
MASKRCNN_HOST_DEVICE bool suppresses(const Box& kept, const Box& other, float iou_threshold, float offset) {
  const float x1 = kept.x1 < other.x1 ? other.x1 : kept.x1;
  const float y1 = kept.y1 < other.y1 ? other.y1 : kept.y1;
  const float x2 = other.x2 < kept.x2 ? other.x2 : kept.x2;
  const float y2 = other.y2 < kept.y2 ? other.y2 : kept.y2;
  const float width = x2 - x1 + offset;
  const float height = y2 - y1 + offset;
  const float intersection = unfused_product(width > 0.f ? width : 0.f, height > 0.f ? height : 0.f);
  // Most pairs do not meet: skip the division, whose result would be 0 or NaN.
  if (!(intersection > 0.f) && iou_threshold >= 0.f) return false;
  // The divisor has no floor, as in mmcv: 0 / 0 is NaN, which fails the test.
  const float overlap = intersection / (box_area(kept, offset) + box_area(other, offset) - intersection);
  return overlap > iou_threshold;
}

// A strict total order: the higher score first, equal scores by index, NaN scores last (by index among themselves).
MASKRCNN_HOST_DEVICE bool ranks_before(float score_a, int64_t index_a, float score_b, int64_t index_b) {
  const bool a_is_number = score_a == score_a;
  const bool b_is_number = score_b == score_b;
  if (a_is_number != b_is_number) return a_is_number;
  if (a_is_number && score_a != score_b) return score_a > score_b;
  return index_a < index_b;
}

}  // namespace maskrcnn
