// Arguments and results of RoIAlign as NumPy arrays, of one level and of several.
#pragma once

#include <pybind11/numpy.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "plugins/common/numpy_arrays.h"
#include "plugins/roi_align/roi_align_reference.h"

namespace maskrcnn {

inline RoiAlignParams checked_params(int64_t output_height, int64_t output_width, int sampling_ratio,
                                     const std::string& mode, bool aligned) {
  constexpr int64_t kMaxBins = std::numeric_limits<int16_t>::max();
  check(output_height >= 1 && output_height <= kMaxBins && output_width >= 1 && output_width <= kMaxBins,
        "output_height, output_width: expected 1 to " + std::to_string(kMaxBins) + ", found " +
            std::to_string(output_height) + ", " + std::to_string(output_width));
  check(sampling_ratio <= kMaxSamplesPerAxis, "sampling_ratio: expected at most " + std::to_string(kMaxSamplesPerAxis) +
                                                  " (0: adaptive), found " + std::to_string(sampling_ratio));
  check(mode == "avg" || mode == "max", "mode: expected 'avg' or 'max', found '" + mode + "'");
  return {static_cast<int>(output_height), static_cast<int>(output_width), sampling_ratio,
          mode == "avg" ? PoolMode::kAvg : PoolMode::kMax, aligned};
}

inline FeatureMap checked_map(const float* data, int64_t batch, int64_t channels, int64_t height, int64_t width,
                              double spatial_scale) {
  constexpr int64_t kMaxSize = 1 << 24;  // up to here float32 holds every pixel index
  check(batch >= 0 && channels >= 0 && height >= 1 && height <= kMaxSize && width >= 1 && width <= kMaxSize,
        "features: expected batch and channels >= 0, height and width from 1 to " + std::to_string(kMaxSize) +
            ", found " + std::to_string(batch) + ", " + std::to_string(channels) + ", " + std::to_string(height) +
            ", " + std::to_string(width));
  check(spatial_scale > 0. && std::isfinite(spatial_scale),
        "spatial_scale: expected a positive number, found " + std::to_string(spatial_scale));
  return {data, batch, channels, static_cast<int>(height), static_cast<int>(width), static_cast<float>(spatial_scale)};
}

inline FeatureMap checked_features(const py::array& features, double spatial_scale) {
  const auto* data = checked_data<float>("features", features, {kAny, kAny, kAny, kAny});
  return checked_map(data, features.shape(0), features.shape(1), features.shape(2), features.shape(3), spatial_scale);
}

// The results of RoIAlign as NumPy arrays; the argmax ones are empty in average mode.
struct RoiAlignArrays {
  RoiAlignArrays(int64_t num_rois, int64_t channels, const RoiAlignParams& params)
      : values(new_array<float>({num_rois, channels, params.output_height, params.output_width})) {
    const bool is_max = params.mode == PoolMode::kMax;
    const auto like_values = [&] {
      return is_max ? new_array<float>({num_rois, channels, params.output_height, params.output_width})
                    : new_array<float>({0});
    };
    argmax_y = like_values();
    argmax_x = like_values();
    out = {values.mutable_data(), argmax_y.mutable_data(), argmax_x.mutable_data()};
  }
  py::array_t<float> values;
  py::array_t<float> argmax_y;
  py::array_t<float> argmax_x;
  RoiAlignOutput out{};
};

}  // namespace maskrcnn
