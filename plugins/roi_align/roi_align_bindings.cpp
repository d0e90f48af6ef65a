#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "plugins/common/bindings.h"
#include "plugins/common/numpy_arrays.h"
#include "plugins/roi_align/roi_align_arrays.h"

namespace maskrcnn {
namespace {

py::tuple roi_align_forward_binding(const py::array& features, const py::array& rois, int64_t output_height,
                                    int64_t output_width, double spatial_scale, int sampling_ratio,
                                    const std::string& mode, bool aligned) {
  const RoiAlignParams params = checked_params(output_height, output_width, sampling_ratio, mode, aligned);
  const FeatureMap map = checked_features(features, spatial_scale);
  const auto* roi_data = checked_data<float>("rois", rois, {kAny, 5});
  const auto num_rois = rois.shape(0);
  RoiAlignArrays arrays(num_rois, map.channels, params);
  {
    const py::gil_scoped_release release;
    roi_align(roi_data, num_rois, map.channels, [&](const float*) { return map; }, params, arrays.out);
  }
  return py::make_tuple(arrays.values, arrays.argmax_y, arrays.argmax_x);
}

py::array_t<float> roi_align_backward_binding(const py::array& grad_output, const py::array& rois,
                                              const py::array& argmax_y, const py::array& argmax_x, int64_t batch,
                                              int64_t channels, int64_t height, int64_t width, double spatial_scale,
                                              int sampling_ratio, const std::string& mode, bool aligned) {
  const FeatureMap map = checked_map(nullptr, batch, channels, height, width, spatial_scale);
  const auto* roi_data = checked_data<float>("rois", rois, {kAny, 5});
  const auto num_rois = rois.shape(0);
  const auto* grad_data = checked_data<float>("grad_output", grad_output, {num_rois, channels, kAny, kAny});
  const RoiAlignParams params =
      checked_params(grad_output.shape(2), grad_output.shape(3), sampling_ratio, mode, aligned);
  RoiAlignGradients gradients{grad_data, nullptr, nullptr, nullptr};
  if (params.mode == PoolMode::kMax) {
    const auto shape = {num_rois, static_cast<py::ssize_t>(channels), grad_output.shape(2), grad_output.shape(3)};
    gradients.argmax_y = checked_data<float>("argmax_y", argmax_y, shape);
    gradients.argmax_x = checked_data<float>("argmax_x", argmax_x, shape);
  }
  auto grad_input = new_zeros<float>({batch, channels, height, width});
  gradients.input = grad_input.mutable_data();
  {
    const py::gil_scoped_release release;
    roi_align_backward(roi_data, num_rois, map, params, gradients);
  }
  return grad_input;
}

const Bindings bindings([](py::module_& module) {
  using py::arg;
  module.def("roi_align_forward", &roi_align_forward_binding, arg("features"), arg("rois"), arg("output_height"),
             arg("output_width"), arg("spatial_scale") = 1.0, arg("sampling_ratio") = 0, arg("mode") = "avg",
             arg("aligned") = true,
             R"(Return (out, argmax_y, argmax_x), each (R, C, output_height, output_width) float32; the last two
(0,) in mode 'avg', otherwise the position of each maximum in feature px, -1 where there is none.

features: (N, C, H, W) float32. rois: (R, 5) float32, [batch_index, x1, y1, x2, y2] in input px. spatial_scale: feature
px per input px. sampling_ratio: samples per bin and axis, at most 512; 0: adaptive. An RoI whose batch index is outside
[0, N) or that has a NaN coordinate gives zeros. ValueError names the argument that has another shape, dtype or range.

Source: mmcv/ops/csrc/pytorch/cpu/roi_align.cpp.)");
  module.def("roi_align_backward", &roi_align_backward_binding, arg("grad_output"), arg("rois"), arg("argmax_y"),
             arg("argmax_x"), arg("batch"), arg("channels"), arg("height"), arg("width"), arg("spatial_scale") = 1.0,
             arg("sampling_ratio") = 0, arg("mode") = "avg", arg("aligned") = true,
             R"(Return the gradient of roi_align_forward's features: (batch, channels, height, width) float32.

grad_output: (R, channels, output_height, output_width) float32. rois, and the other attributes, as in the forward call.
argmax_y, argmax_x: what the forward call returned; unused in mode 'avg'. ValueError names the argument that has another
shape, dtype or range.)");
});

}  // namespace
}  // namespace maskrcnn
