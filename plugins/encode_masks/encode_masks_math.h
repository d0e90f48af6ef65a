// The maths of masks as COCO's compressed run lengths: which pixels of the image a mask sets, and the bytes of a run.
// Pixels are those of mmdet's _do_paste_mask with skip_empty=True, then `>= threshold`; the bytes are those of
// pycocotools' rleEncode and rleToString (pycocotools/common/maskApi.c).
#pragma once

#include <cmath>
#include <cstdint>

#include "plugins/common/host_device.h"
#include "plugins/paste_masks/paste_masks_math.h"

namespace maskrcnn {

// A difference of two runs, 32 bits with its sign, 5 bits to a byte.
constexpr int kMaxRunBytes = 7;

constexpr int32_t kMaxMaskCells = 1024;  // per axis of a mask

// An image to paste into.
struct TargetImage {
  int32_t height, width;   // px
  float scale_x, scale_y;  // network px per px of this image: a box / scale lies in this image
};

// Up to 2^24 px float32 holds every coordinate, and up to 2^31 - 1 pixels COCO's counts hold every run.
MASKRCNN_HOST_DEVICE bool is_valid(const TargetImage& image) {
  constexpr int32_t kMaxSize = 1 << 24;
  return image.height >= 0 && image.height <= kMaxSize && image.width >= 0 && image.width <= kMaxSize &&
         static_cast<int64_t>(image.height) * image.width <= INT32_MAX;
}

// A box in px of the target image, and the pixels that it may touch.
struct PasteBox {
  float x1, y1, x2, y2;
  PixelRange columns, rows;  // both empty where one is
};

// box: x1 y1 x2 y2 in network px.
MASKRCNN_HOST_DEVICE PasteBox paste_box(const float* box, const TargetImage& image) {
  PasteBox out{box[0] / image.scale_x, box[1] / image.scale_y, box[2] / image.scale_x, box[3] / image.scale_y, {}, {}};
  const PixelRange columns = paste_range(out.x1, out.x2, image.width);
  const PixelRange rows = paste_range(out.y1, out.y2, image.height);
  if (columns.begin < columns.end && rows.begin < rows.end) {
    out.columns = columns;
    out.rows = rows;
  }
  return out;
}

// Between the mask's cells `low` and low + 1 of one axis, `weight` of the way. Cells outside the mask are 0.
struct CellPosition {
  int low;
  float weight;
};

constexpr int kOutsideCell = -2;  // it and the next one are outside

// NaN stays NaN: it sets no pixel, whatever the threshold.
MASKRCNN_HOST_DEVICE CellPosition cell_position(float position, int mask_size) {
  if (position != position) return {kOutsideCell, position};
  if (!(position >= -1.f && position < static_cast<float>(mask_size))) return {kOutsideCell, 0.f};
  const float floored = floorf(position);
  return {static_cast<int>(floored), position - floored};
}

// Rises or falls with `weight` without exception, rounding included: each of the two operations on it is monotone.
MASKRCNN_HOST_DEVICE float interpolated(float low, float high, float weight) {
  return low + unfused_product(high - low, weight);
}

// A row of the mask, at a column of the image. mask: (height, width).
MASKRCNN_HOST_DEVICE float mask_row_at(const float* mask, int height, int width, int row, const CellPosition& column) {
  const bool inside = row >= 0 && row < height;
  const float* cells = mask + static_cast<int64_t>(row) * width;
  const float low = inside && column.low >= 0 ? cells[column.low] : 0.f;
  const float high = inside && column.low >= -1 && column.low + 1 < width ? cells[column.low + 1] : 0.f;
  return interpolated(low, high, column.weight);
}

// What an entry of the encoding says, from the ends of its run and of the three before: positions in the image, column
// by column, 0 before the first. From the fourth entry on it is the difference to the run two before.
MASKRCNN_HOST_DEVICE int64_t run_entry(int64_t index, const int32_t* end) {
  const int64_t length = static_cast<int64_t>(end[0]) - end[-1];
  return index > 2 ? length - (static_cast<int64_t>(end[-2]) - end[-3]) : length;
}

// Writes a run's bytes, at most kMaxRunBytes, and returns how many they are: 5 bits each, the lowest first, a sixth
// where more follow; the last byte's fifth bit is the sign.
MASKRCNN_HOST_DEVICE int write_run(int64_t entry, uint8_t* bytes) {
  int count = 0;
  bool more = true;
  while (more && count < kMaxRunBytes) {
    const int low = static_cast<int>(entry & 0x1f);
    entry >>= 5;
    more = (low & 0x10) ? entry != -1 : entry != 0;
    bytes[count++] = static_cast<uint8_t>((low | (more ? 0x20 : 0)) + 48);
  }
  return count;
}

}  // namespace maskrcnn
