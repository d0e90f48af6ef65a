// Pasting masks on the CPU: the loops around paste_masks_math.h.
#pragma once

#include <cstdint>
#include <vector>

#include "plugins/common/parallel_for.h"
#include "plugins/paste_masks/paste_masks_math.h"

namespace maskrcnn {

struct PasteMasksInput {
  const float* masks;  // (num_masks, mask_height, mask_width)
  const float* boxes;  // (num_masks, 4)
  int mask_height;
  int mask_width;
  int height;
  int width;
  float threshold;
};

// image: (height, width), zeros beforehand.
inline void paste_mask(const PasteMasksInput& in, int64_t index, uint8_t* image) {
  const float* mask = in.masks + index * static_cast<int64_t>(in.mask_height) * in.mask_width;
  const float* box = in.boxes + index * 4;
  const PixelRange columns = paste_range(box[0], box[2], in.width);
  const PixelRange rows = paste_range(box[1], box[3], in.height);
  std::vector<MaskTap> taps;
  for (int px = columns.begin; px < columns.end; ++px) {
    taps.push_back(mask_tap(mask_position(px, box[0], box[2], in.mask_width), in.mask_width));
  }
  for (int py = rows.begin; py < rows.end; ++py) {
    const MaskTap y = mask_tap(mask_position(py, box[1], box[3], in.mask_height), in.mask_height);
    uint8_t* row = image + static_cast<int64_t>(py) * in.width + columns.begin;
    for (const MaskTap& x : taps) *row++ = sample_mask(mask, in.mask_width, y, x) >= in.threshold;
  }
}

// images: (num_masks, height, width), zeros beforehand.
inline void paste_masks(const PasteMasksInput& in, int64_t num_masks, uint8_t* images) {
  const int64_t image_size = static_cast<int64_t>(in.height) * in.width;
  parallel_for(num_masks, [&](int64_t index) { paste_mask(in, index, images + index * image_size); });
}

}  // namespace maskrcnn
