// Bilinear resizing of uint8 images in fixed point, bit for bit as cv2.resize(INTER_LINEAR) does it: OpenCV's generic
// path (modules/imgproc/src/resize.cpp), with and without its SIMD.
//
// What OpenCV treats apart needs nothing of its own here, as the formula gives the same bytes: an image of the right
// size, which it copies, and one of twice the height and width, whose 2 x 2 pixels it averages (INTER_AREA).
#pragma once

#include <cmath>
#include <cstdint>

#include "plugins/common/host_device.h"

namespace maskrcnn {

// OpenCV's own limit for images that it reads.
constexpr int kMaxImageSize = 1 << 20;
constexpr int kTableSize = 256;  // a normalised value for each value of a pixel

constexpr float kWeightOne = 2048.f;  // weights are in 1 / 2048

// The two source pixels of an axis that an output pixel lies between.
struct ResizeTap {
  int low;
  int high;
  int low_weight;
  int high_weight;
};

// Source px per output px. Two divisions, as OpenCV rounds twice: source_size / size differs in the last bit.
MASKRCNN_HOST_DEVICE double resize_scale(int source_size, int size) {
  return 1. / (static_cast<double>(size) / static_cast<double>(source_size));
}

// Where the centre of output pixel `index` falls among the centres of the source pixels: double, rounded to float.
MASKRCNN_HOST_DEVICE float resize_position(int index, double scale) {
  return static_cast<float>(unfused_product(static_cast<double>(index) + 0.5, scale) - 0.5);
}

MASKRCNN_HOST_DEVICE int clamp_index(int index, int size) { return index < 0 ? 0 : (index < size ? index : size - 1); }

MASKRCNN_HOST_DEVICE ResizeTap resize_tap(int low, float high_weight, int size) {
  // The product is exact; rintf rounds halves to even, as OpenCV's saturate_cast does.
  return {clamp_index(low, size), clamp_index(low + 1, size), static_cast<int>(rintf((1.f - high_weight) * kWeightOne)),
          static_cast<int>(rintf(high_weight * kWeightOne))};
}

// Beyond the outermost pixels' centres a column is the outermost one, with the whole weight.
MASKRCNN_HOST_DEVICE ResizeTap column_tap(int column, double scale, int source_width) {
  const float position = resize_position(column, scale);
  const float floored = floorf(position);
  const int low = static_cast<int>(floored);
  const bool between = low >= 0 && low < source_width - 1;
  return resize_tap(low < 0 ? 0 : low, between ? position - floored : 0.f, source_width);
}

// There a row is twice the outermost one, with the weights of two: blending rounds each product down, so that the
// result may differ.
MASKRCNN_HOST_DEVICE ResizeTap row_tap(int row, double scale, int source_height) {
  const float position = resize_position(row, scale);
  const float floored = floorf(position);
  return resize_tap(static_cast<int>(floored), position - floored, source_height);
}

// One channel of two neighbouring pixels of a row, in 1 / 128.
MASKRCNN_HOST_DEVICE int blended_columns(int low, int high, const ResizeTap& column) {
  return (low * column.low_weight + high * column.high_weight) >> 4;
}

// The same of two rows: 0 to 255, whatever the weights' rounding.
MASKRCNN_HOST_DEVICE int blended_rows(int low, int high, const ResizeTap& row) {
  return (((low * row.low_weight) >> 16) + ((high * row.high_weight) >> 16) + 2) >> 2;
}

}  // namespace maskrcnn
