// Per-axis and per-sample maths of RoIAlign, as in mmcv (mmcv/ops/csrc/pytorch/cpu/roi_align.cpp, after Caffe2 and
// detectron2). x and y are separable: everything but the four-point sum is done per axis.
#pragma once

#include <cmath>
#include <cstdint>

#include "plugins/common/host_device.h"

namespace maskrcnn {

// The most samples along one axis of a bin. Adaptive sampling takes one sample per feature pixel of the bin, so that
// RoIs up to 512 px of the feature map per bin are exact: 14336 px of an image at stride 4 in 7 bins. A larger RoI
// (the made-up input that TensorRT times a plugin on) gets 512 samples, evenly spaced over its bin.
constexpr int kMaxSamplesPerAxis = 512;

enum class PoolMode { kMax, kAvg };  // in the order of mmcv's attribute: 0, 1

// What mmcv starts max pooling with, and returns for a bin without samples.
constexpr float kMaxPoolStart = -10000.f;
// mmcv's mark for "no sample was the maximum". A maximum at exactly -1, the map's outermost position, looks the same
// and gets no gradient, in mmcv as here.
constexpr float kNoArgmax = -1.f;

// One axis of an RoI on one feature map, in feature pixels.
struct RoiAxis {
  float start;
  float bin_size;
  int num_samples;  // per bin: 0 where adaptive sampling meets an RoI without extent
};

MASKRCNN_HOST_DEVICE int num_axis_samples(float bin_size, int sampling_ratio) {
  if (sampling_ratio > 0) return sampling_ratio < kMaxSamplesPerAxis ? sampling_ratio : kMaxSamplesPerAxis;
  const float wanted = ceilf(bin_size);
  if (!(wanted > 0.f)) return 0;
  return wanted < static_cast<float>(kMaxSamplesPerAxis) ? static_cast<int>(wanted) : kMaxSamplesPerAxis;
}

// begin, end: the RoI's coordinates in input px. num_bins >= 1. sampling_ratio <= 0: adaptive.
MASKRCNN_HOST_DEVICE RoiAxis roi_axis(float begin, float end, float spatial_scale, bool aligned, int num_bins,
                                      int sampling_ratio) {
  const float offset = aligned ? 0.5f : 0.f;
  const float start = unfused_product(begin, spatial_scale) - offset;
  float size = unfused_product(end, spatial_scale) - offset - start;
  if (!aligned && !(size > 1.f)) size = 1.f;
  const float bin_size = size / static_cast<float>(num_bins);
  return {start, bin_size, num_axis_samples(bin_size, sampling_ratio)};
}

// Where sample `sample` of bin `bin` lies. The order of the operations is mmcv's.
MASKRCNN_HOST_DEVICE float sample_position(const RoiAxis& axis, int bin, int sample) {
  return axis.start + unfused_product(static_cast<float>(bin), axis.bin_size) +
         (static_cast<float>(sample) + 0.5f) * axis.bin_size / static_cast<float>(axis.num_samples);
}

// The two feature pixels that a sample lies between, and their weights.
struct AxisTap {
  int low;
  int high;
  float low_weight;
  float high_weight;
  bool inside;  // false: the sample counts as 0; low and high are 0, so that they may be read nevertheless
};

// size >= 1: the axis's number of feature pixels.
MASKRCNN_HOST_DEVICE AxisTap axis_tap(float position, int size) {
  // Written so that NaN is outside.
  if (!(position >= -1.f && position <= static_cast<float>(size))) return {0, 0, 0.f, 0.f, false};
  const float clamped = position > 0.f ? position : 0.f;
  const int low = static_cast<int>(clamped);
  if (low >= size - 1) return {size - 1, size - 1, 1.f, 0.f, true};
  const float high_weight = clamped - static_cast<float>(low);
  return {low, low + 1, 1.f - high_weight, high_weight, true};
}

// row_low, row_high: the feature rows y.low and y.high. Both taps inside.
MASKRCNN_HOST_DEVICE float interpolate(const float* row_low, const float* row_high, const AxisTap& y,
                                       const AxisTap& x) {
  return y.low_weight * x.low_weight * row_low[x.low] + y.low_weight * x.high_weight * row_low[x.high] +
         y.high_weight * x.low_weight * row_high[x.low] + y.high_weight * x.high_weight * row_high[x.high];
}

// roi: [batch_index, x1, y1, x2, y2]. False where the RoI names no image of the batch or has a NaN coordinate: such an
// RoI gives zeros.
MASKRCNN_HOST_DEVICE bool is_valid_roi(const float* roi, int64_t batch) {
  const bool has_image = roi[0] >= 0.f && roi[0] < static_cast<float>(batch);
  const bool has_corners = roi[1] == roi[1] && roi[2] == roi[2] && roi[3] == roi[3] && roi[4] == roi[4];
  return has_image && has_corners;
}

}  // namespace maskrcnn
