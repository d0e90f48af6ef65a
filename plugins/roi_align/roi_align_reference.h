// RoIAlign on the CPU: the loops around roi_align_math.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "plugins/common/parallel_for.h"
#include "plugins/roi_align/roi_align_math.h"

namespace maskrcnn {

struct RoiAlignParams {
  int output_height;
  int output_width;
  int sampling_ratio;  // <= 0: adaptive
  PoolMode mode;
  bool aligned;
};

// One (batch, channels, height, width) feature map, and its pixels per input pixel.
struct FeatureMap {
  const float* data;
  int64_t batch;
  int64_t channels;
  int height;
  int width;
  float spatial_scale;
};

struct Sample {
  AxisTap tap;
  float position;
};

// The samples of every bin along one axis of an RoI; those of bin b are samples[begin[b]] ... samples[begin[b + 1]].
struct AxisSamples {
  std::vector<Sample> samples;
  std::vector<size_t> begin;
  int num_per_bin = 0;
};

// Samples outside the feature map count as 0: they add nothing to an average and are left out. A maximum sees their 0
// (keep_outside), of which each bin needs only the first, as a later 0 does not exceed it. Either way the work that an
// RoI costs is bounded by the feature map, however large the RoI claims to be.
inline void list_samples(const RoiAxis& axis, int num_bins, int size, bool keep_outside, AxisSamples& out) {
  out.samples.clear();
  out.begin.assign(1, 0);
  out.num_per_bin = axis.num_samples;
  for (int bin = 0; bin < num_bins; ++bin) {
    bool needs_outside = keep_outside;
    for (int i = 0; i < axis.num_samples; ++i) {
      const float position = sample_position(axis, bin, i);
      const AxisTap tap = axis_tap(position, size);
      if (!tap.inside && !needs_outside) continue;
      if (!tap.inside) needs_outside = false;
      out.samples.push_back({tap, position});
    }
    out.begin.push_back(out.samples.size());
  }
}

struct RoiSamples {
  AxisSamples y;
  AxisSamples x;
  float count() const { return static_cast<float>(std::max(y.num_per_bin * x.num_per_bin, 1)); }
};

inline void list_roi_samples(const float* roi, const FeatureMap& map, const RoiAlignParams& params, RoiSamples& out) {
  const bool keep_outside = params.mode == PoolMode::kMax;
  const RoiAxis y =
      roi_axis(roi[2], roi[4], map.spatial_scale, params.aligned, params.output_height, params.sampling_ratio);
  const RoiAxis x =
      roi_axis(roi[1], roi[3], map.spatial_scale, params.aligned, params.output_width, params.sampling_ratio);
  list_samples(y, params.output_height, map.height, keep_outside, out.y);
  list_samples(x, params.output_width, map.width, keep_outside, out.x);
}

inline float average_bin(const float* plane, int64_t width, const RoiSamples& roi, size_t ph, size_t pw) {
  float sum = 0.f;
  for (size_t i = roi.y.begin[ph]; i < roi.y.begin[ph + 1]; ++i) {
    const AxisTap& y = roi.y.samples[i].tap;
    for (size_t j = roi.x.begin[pw]; j < roi.x.begin[pw + 1]; ++j) {
      sum += interpolate(plane + y.low * width, plane + y.high * width, y, roi.x.samples[j].tap);
    }
  }
  return sum / roi.count();
}

struct Maximum {
  float value = kMaxPoolStart;
  float y = kNoArgmax;
  float x = kNoArgmax;
};

inline Maximum maximum_bin(const float* plane, int64_t width, const RoiSamples& roi, size_t ph, size_t pw) {
  Maximum best;
  for (size_t i = roi.y.begin[ph]; i < roi.y.begin[ph + 1]; ++i) {
    const Sample& y = roi.y.samples[i];
    for (size_t j = roi.x.begin[pw]; j < roi.x.begin[pw + 1]; ++j) {
      const Sample& x = roi.x.samples[j];
      const bool inside = y.tap.inside && x.tap.inside;
      const float value =
          inside ? interpolate(plane + y.tap.low * width, plane + y.tap.high * width, y.tap, x.tap) : 0.f;
      if (value > best.value) best = {value, y.position, x.position};
    }
  }
  return best;
}

// Where one RoI's results go; argmax_y and argmax_x only with PoolMode::kMax.
struct RoiAlignOutput {
  float* values;
  float* argmax_y;
  float* argmax_x;
};

inline void fill_invalid_roi(const RoiAlignOutput& out, int64_t begin, int64_t end, PoolMode mode) {
  std::fill(out.values + begin, out.values + end, 0.f);
  if (mode == PoolMode::kAvg) return;
  std::fill(out.argmax_y + begin, out.argmax_y + end, kNoArgmax);
  std::fill(out.argmax_x + begin, out.argmax_x + end, kNoArgmax);
}

// Channels [begin, end) of RoI `index`.
inline void align_roi(const float* roi, int64_t index, const FeatureMap& map, const RoiAlignParams& params,
                      int64_t begin, int64_t end, const RoiAlignOutput& out) {
  const int64_t bins = static_cast<int64_t>(params.output_height) * params.output_width;
  int64_t at = (index * map.channels + begin) * bins;
  if (!is_valid_roi(roi, map.batch)) {
    fill_invalid_roi(out, at, at + (end - begin) * bins, params.mode);
    return;
  }
  thread_local RoiSamples samples;
  list_roi_samples(roi, map, params, samples);
  const int64_t plane_size = static_cast<int64_t>(map.height) * map.width;
  const float* plane = map.data + (static_cast<int64_t>(roi[0]) * map.channels + begin) * plane_size;
  for (int64_t c = begin; c < end; ++c, plane += plane_size) {
    for (int ph = 0; ph < params.output_height; ++ph) {
      for (int pw = 0; pw < params.output_width; ++pw, ++at) {
        if (params.mode == PoolMode::kAvg) {
          out.values[at] = average_bin(plane, map.width, samples, ph, pw);
          continue;
        }
        const Maximum best = maximum_bin(plane, map.width, samples, ph, pw);
        out.values[at] = best.value;
        out.argmax_y[at] = best.y;
        out.argmax_x[at] = best.x;
      }
    }
  }
}

// Few RoIs still keep every core busy when their channels are split.
constexpr int64_t kChannelsPerTask = 64;

// rois: (num_rois, 5). map_of(roi) names the feature map that an RoI is read from; all have the same channels.
template <typename MapOf>
void roi_align(const float* rois, int64_t num_rois, int64_t channels, const MapOf& map_of, const RoiAlignParams& params,
               const RoiAlignOutput& out) {
  const int64_t blocks = (channels + kChannelsPerTask - 1) / kChannelsPerTask;
  parallel_for(num_rois * blocks, [&](int64_t task) {
    const int64_t index = task / blocks;
    const int64_t begin = task % blocks * kChannelsPerTask;
    const float* roi = rois + index * 5;
    align_roi(roi, index, map_of(roi), params, begin, std::min(begin + kChannelsPerTask, channels), out);
  });
}

struct RoiAlignGradients {
  const float* output;    // (num_rois, channels, output_height, output_width)
  const float* argmax_y;  // as output, only with PoolMode::kMax
  const float* argmax_x;
  float* input;  // (batch, channels, height, width)
};

inline void add_sample_gradient(float* plane, int64_t width, const AxisTap& y, const AxisTap& x, float gradient,
                                float count) {
  float* row_low = plane + y.low * width;
  float* row_high = plane + y.high * width;
  row_low[x.low] += gradient * (y.low_weight * x.low_weight) / count;
  row_low[x.high] += gradient * (y.low_weight * x.high_weight) / count;
  row_high[x.low] += gradient * (y.high_weight * x.low_weight) / count;
  row_high[x.high] += gradient * (y.high_weight * x.high_weight) / count;
}

inline void add_average_gradient(float* plane, int64_t width, const RoiSamples& roi, size_t ph, size_t pw,
                                 float gradient) {
  for (size_t i = roi.y.begin[ph]; i < roi.y.begin[ph + 1]; ++i) {
    for (size_t j = roi.x.begin[pw]; j < roi.x.begin[pw + 1]; ++j) {
      add_sample_gradient(plane, width, roi.y.samples[i].tap, roi.x.samples[j].tap, gradient, roi.count());
    }
  }
}

inline void add_maximum_gradient(float* plane, const FeatureMap& map, float argmax_y, float argmax_x, float gradient) {
  if (argmax_y == kNoArgmax) return;
  const AxisTap y = axis_tap(argmax_y, map.height);
  const AxisTap x = axis_tap(argmax_x, map.width);
  if (y.inside && x.inside) add_sample_gradient(plane, map.width, y, x, gradient, 1.f);
}

inline void add_roi_gradient(const float* roi, int64_t index, const FeatureMap& map, const RoiAlignParams& params,
                             int64_t begin, int64_t end, const RoiAlignGradients& gradients) {
  if (!is_valid_roi(roi, map.batch)) return;
  thread_local RoiSamples samples;
  const bool is_avg = params.mode == PoolMode::kAvg;
  if (is_avg) list_roi_samples(roi, map, params, samples);
  int64_t at = (index * map.channels + begin) * params.output_height * params.output_width;
  const int64_t plane_size = static_cast<int64_t>(map.height) * map.width;
  float* plane = gradients.input + (static_cast<int64_t>(roi[0]) * map.channels + begin) * plane_size;
  for (int64_t c = begin; c < end; ++c, plane += plane_size) {
    for (int ph = 0; ph < params.output_height; ++ph) {
      for (int pw = 0; pw < params.output_width; ++pw, ++at) {
        const float gradient = gradients.output[at];
        if (is_avg) {
          add_average_gradient(plane, map.width, samples, ph, pw, gradient);
        } else {
          add_maximum_gradient(plane, map, gradients.argmax_y[at], gradients.argmax_x[at], gradient);
        }
      }
    }
  }
}

// Adds to gradients.input, which starts as zeros. Tasks own channels, so that no two threads write to one plane and the
// order of the additions, hence the result, does not depend on the number of threads.
inline void roi_align_backward(const float* rois, int64_t num_rois, const FeatureMap& map, const RoiAlignParams& params,
                               const RoiAlignGradients& gradients) {
  const int64_t per_task = std::max<int64_t>(1, map.channels / (4 * num_worker_threads()));
  parallel_for((map.channels + per_task - 1) / per_task, [&](int64_t task) {
    const int64_t begin = task * per_task;
    const int64_t end = std::min(begin + per_task, map.channels);
    for (int64_t i = 0; i < num_rois; ++i) add_roi_gradient(rois + i * 5, i, map, params, begin, end, gradients);
  });
}

}  // namespace maskrcnn
