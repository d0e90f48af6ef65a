#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "plugins/common/bindings.h"
#include "plugins/common/numpy_arrays.h"
#include "plugins/grouped_nms/grouped_nms_reference.h"

namespace maskrcnn {
namespace {

py::array_t<int64_t> nms_binding(const py::array& boxes, const py::array& scores, float iou_threshold, int offset) {
  const auto* box_data = checked_data<float>("boxes", boxes, {kAny, 4});
  const auto* score_data = checked_data<float>("scores", scores, {boxes.shape(0)});
  check(offset == 0 || offset == 1, "offset: expected 0 or 1, found " + std::to_string(offset));
  std::vector<int64_t> kept;
  {
    const py::gil_scoped_release release;
    kept = nms(box_data, score_data, boxes.shape(0), iou_threshold, static_cast<float>(offset));
  }
  return py::array_t<int64_t>(static_cast<py::ssize_t>(kept.size()), kept.data());
}

py::tuple grouped_nms_binding(const py::array& boxes, const py::array& scores, const py::array& groups,
                              float iou_threshold, float score_threshold, int64_t max_output) {
  const auto* box_data = checked_data<float>("boxes", boxes, {kAny, kAny, 4});
  const auto batch = boxes.shape(0);
  const auto num_boxes = boxes.shape(1);
  const auto* score_data = checked_data<float>("scores", scores, {batch, num_boxes});
  const auto* group_data = checked_data<int32_t>("groups", groups, {batch, num_boxes});
  check(max_output >= 1, "max_output: expected at least 1, found " + std::to_string(max_output));
  check(num_boxes <= std::numeric_limits<int32_t>::max(),
        "boxes: expected at most 2147483647 per image, as indices are int32, found " + std::to_string(num_boxes));
  auto indices = new_array<int32_t>({batch, static_cast<py::ssize_t>(max_output)});
  auto counts = new_array<int32_t>({batch});
  auto* index_data = indices.mutable_data();
  auto* count_data = counts.mutable_data();
  {
    const py::gil_scoped_release release;
    grouped_nms({box_data, score_data, group_data, num_boxes, iou_threshold, score_threshold, max_output}, batch,
                index_data, count_data);
  }
  return py::make_tuple(indices, counts);
}

const Bindings bindings([](py::module_& module) {
  using py::arg;
  module.def("nms", &nms_binding, arg("boxes"), arg("scores"), arg("iou_threshold"), arg("offset") = 0,
             R"(Return the indices of the boxes that greedy NMS keeps, best score first: (K,) int64.

boxes: (M, 4) float32 [x1, y1, x2, y2] in px. scores: (M,) float32. offset: 0, or 1 where x2 and y2 are the last
pixel inside. A box goes if its IoU with a kept one is above iou_threshold. Equal scores keep their order; NaN scores
sort last. M = 0 gives (0,). ValueError names the argument that has another shape or dtype.

Source: mmcv/ops/csrc/pytorch/cpu/nms.cpp, which sorts NaN scores first.)");
  module.def("grouped_nms", &grouped_nms_binding, arg("boxes"), arg("scores"), arg("groups"), arg("iou_threshold"),
             arg("score_threshold"), arg("max_output"),
             R"(Return (indices, count) of greedy NMS within groups: (B, max_output) int32 padded with -1, (B,) int32.

boxes: (B, M, 4) float32 [x1, y1, x2, y2] in px. scores: (B, M) float32. groups: (B, M) int32, any ids. Only scores
above score_threshold take part (NaN does not), and only boxes of one group suppress each other. Indices are sorted by
descending score, then ascending index. ValueError names the argument that has another shape or dtype.)");
});

}  // namespace
}  // namespace maskrcnn
