#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "plugins/common/bindings.h"
#include "plugins/common/numpy_arrays.h"
#include "plugins/multi_level_roi_align/multi_level_roi_align_math.h"
#include "plugins/multi_level_roi_align/quantized.h"
#include "plugins/roi_align/roi_align_arrays.h"

namespace maskrcnn {
namespace {

std::vector<FeatureMap> checked_pyramid(const std::vector<py::array>& features,
                                        const std::vector<double>& spatial_scales) {
  check(!features.empty() && features.size() == spatial_scales.size(),
        "features, spatial_scales: expected one scale per feature map and at least one, found " +
            std::to_string(features.size()) + " maps, " + std::to_string(spatial_scales.size()) + " scales");
  std::vector<FeatureMap> maps;
  for (size_t i = 0; i < features.size(); ++i) {
    maps.push_back(checked_features(features[i], spatial_scales[i]));
    check(maps[i].batch == maps[0].batch && maps[i].channels == maps[0].channels,
          "features: expected the same batch and channels on every level, found " + describe(features[0]) + " and " +
              describe(features[i]));
  }
  return maps;
}

py::array quantized_array(const py::array_t<float>& values, float scale) {
  auto result = new_array<int8_t>({values.shape(0), values.shape(1), values.shape(2), values.shape(3)});
  const float* const begin = values.data();
  int8_t* const out = result.mutable_data();
  const py::gil_scoped_release release;
  std::transform(begin, begin + values.size(), out, [scale](float value) { return quantized(value, scale); });
  return result;
}

py::array multi_level_roi_align_binding(const std::vector<py::array>& features, const py::array& rois,
                                        int64_t output_height, int64_t output_width,
                                        const std::vector<double>& spatial_scales, float finest_scale,
                                        int sampling_ratio, const std::string& mode, bool aligned,
                                        float output_scale) {
  const RoiAlignParams params = checked_params(output_height, output_width, sampling_ratio, mode, aligned);
  const std::vector<FeatureMap> maps = checked_pyramid(features, spatial_scales);
  const auto* roi_data = checked_data<float>("rois", rois, {kAny, 5});
  check(finest_scale > 0.f && std::isfinite(finest_scale),
        "finest_scale: expected a positive number of px, found " + std::to_string(finest_scale));
  check(output_scale >= 0.f && std::isfinite(output_scale),
        "output_scale: expected a positive number, or 0 for float32, found " + std::to_string(output_scale));
  const auto num_rois = rois.shape(0);
  RoiAlignArrays arrays(num_rois, maps[0].channels, params);
  const int num_levels = static_cast<int>(maps.size());
  {
    const py::gil_scoped_release release;
    const auto map_of = [&](const float* roi) { return maps[roi_level(roi, finest_scale, num_levels)]; };
    roi_align(roi_data, num_rois, maps[0].channels, map_of, params, arrays.out);
  }
  if (output_scale > 0.f) return quantized_array(arrays.values, output_scale);
  return arrays.values;
}

const Bindings bindings([](py::module_& module) {
  using py::arg;
  module.def("multi_level_roi_align", &multi_level_roi_align_binding, arg("features"), arg("rois"),
             arg("output_height"), arg("output_width"), arg("spatial_scales"), arg("finest_scale") = 56.f,
             arg("sampling_ratio") = 0, arg("mode") = "avg", arg("aligned") = true,
             arg("output_scale") = 0.f,
             R"(Return RoIAlign of each RoI on its own pyramid level: (R, C, output_height, output_width) float32.

features: list of (N, C, H_i, W_i) float32, finest first. spatial_scales: one per level. finest_scale: px; an RoI of
side s is read from level floor(log2(s / finest_scale + 1e-6)), clamped to the levels. The rest is as in
roi_align_forward. output_scale: above 0 the values are int8 in steps of it, as ONNX's QuantizeLinear makes them:
rounded half to even, within -128 to 127, NaN as 0.

Source: mmdet's SingleRoIExtractor.)");
});

}  // namespace
}  // namespace maskrcnn
