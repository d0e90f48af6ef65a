// Per-axis and per-pixel maths of pasting a mask into an image, as in mmdet's _do_paste_mask with skip_empty=True
// (mmdet/models/roi_heads/mask_heads/fcn_mask_head.py) and torch's grid_sample (bilinear, zeros, align_corners=False).
#pragma once

#include <cmath>
#include <cstdint>

#include "plugins/common/host_device.h"

namespace maskrcnn {

// Pixels [begin, end) of one image axis, within [0, size].
struct PixelRange {
  int begin;
  int end;
};

// NaN becomes 0.
MASKRCNN_HOST_DEVICE int clamp_to_size(float value, int size) {
  if (!(value > 0.f)) return 0;
  return value < static_cast<float>(size) ? static_cast<int>(value) : size;
}

// The pixels that a box may touch; empty where the box lies outside or is NaN.
MASKRCNN_HOST_DEVICE PixelRange paste_range(float box_begin, float box_end, int size) {
  return {clamp_to_size(floorf(box_begin) - 1.f, size), clamp_to_size(ceilf(box_end) + 1.f, size)};
}

// The two mask cells that a pixel lies between. A cell outside the mask has weight 0 and index 0.
struct MaskTap {
  int low;
  int high;
  float low_weight;
  float high_weight;
};

// Where the centre of `pixel` falls on an axis of `mask_size` cells stretched over the box.
MASKRCNN_HOST_DEVICE float mask_position(int pixel, float box_begin, float box_end, int mask_size) {
  // Doubling is exact, fused or not.
  float relative = (static_cast<float>(pixel) + 0.5f - box_begin) / (box_end - box_begin) * 2.f - 1.f;
  // mmdet sends the infinities of a box without width to the mask's centre.
  if (relative == INFINITY || relative == -INFINITY) relative = 0.f;
  return unfused_product(relative + 1.f, static_cast<float>(mask_size) / 2.f) - 0.5f;
}

MASKRCNN_HOST_DEVICE MaskTap mask_tap(float position, int mask_size) {
  // Beyond one cell outside nothing of the mask is left. Written so that NaN is outside.
  if (!(position > -1.f && position < static_cast<float>(mask_size))) return {0, 0, 0.f, 0.f};
  const float floored = floorf(position);
  const int low = static_cast<int>(floored);
  const float high_weight = position - floored;
  const bool low_inside = low >= 0;
  const bool high_inside = low + 1 < mask_size;
  return {low_inside ? low : 0, high_inside ? low + 1 : 0, low_inside ? 1.f - high_weight : 0.f,
          high_inside ? high_weight : 0.f};
}

// mask: (height, width) with rows of `width` cells; T converts to float.
template <typename T>
MASKRCNN_HOST_DEVICE float sample_mask(const T* mask, int width, const MaskTap& y, const MaskTap& x) {
  const T* row_low = mask + static_cast<int64_t>(y.low) * width;
  const T* row_high = mask + static_cast<int64_t>(y.high) * width;
  return static_cast<float>(row_low[x.low]) * (x.low_weight * y.low_weight) +
         static_cast<float>(row_low[x.high]) * (x.high_weight * y.low_weight) +
         static_cast<float>(row_high[x.low]) * (x.low_weight * y.high_weight) +
         static_cast<float>(row_high[x.high]) * (x.high_weight * y.high_weight);
}

}  // namespace maskrcnn
