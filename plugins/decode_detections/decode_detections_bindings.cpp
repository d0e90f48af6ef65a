#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "plugins/common/bindings.h"
#include "plugins/common/box_decoding_array.h"
#include "plugins/common/numpy_arrays.h"
#include "plugins/decode_detections/decode_detections_reference.h"

namespace maskrcnn {
namespace {

py::tuple decode_detections_binding(const py::array& logits, const py::array& deltas, const py::array& proposals,
                                    const py::array& count, const py::array& image_sizes, float max_ratio,
                                    const std::vector<float>& means, const std::vector<float>& stds, bool clip) {
  constexpr py::ssize_t kMaxClasses = 1 << 24;
  const auto* logit_data = checked_data<float>("logits", logits, {kAny, kAny, kAny});
  const auto batch = logits.shape(0);
  const auto num_proposals = logits.shape(1);
  const auto num_classes = logits.shape(2) - 1;
  check(num_classes >= 1 && num_classes <= kMaxClasses, "logits: expected 1 to " + std::to_string(kMaxClasses) +
                                                            " classes and the background, found " + describe(logits));
  const auto* delta_data = checked_data<float>("deltas", deltas, {batch, num_proposals, kAny});
  const bool class_agnostic = deltas.shape(2) == 4;
  check(class_agnostic || deltas.shape(2) == 4 * num_classes,
        "deltas: expected 4, or 4 for each of " + std::to_string(num_classes) + " classes, found " + describe(deltas));
  const auto* proposal_data = checked_data<float>("proposals", proposals, {batch, num_proposals, 4});
  const auto* count_data = checked_data<int32_t>("count", count, {batch});
  const auto* size_data = checked_data<float>("image_sizes", image_sizes, {batch, 2});
  const BoxDecoding decoding = checked_decoding(means, stds, max_ratio, clip);
  const auto classes = static_cast<int32_t>(num_classes);
  const DecodeDetectionsInput in{logit_data, delta_data,    proposal_data, count_data,     size_data,
                                 batch,      num_proposals, classes,       class_agnostic, decoding};
  auto boxes = new_array<float>({batch, num_proposals * num_classes, 4});
  auto scores = new_array<float>({batch, num_proposals * num_classes});
  auto* box_data = boxes.mutable_data();
  auto* score_data = scores.mutable_data();
  {
    const py::gil_scoped_release release;
    decode_detections(in, box_data, score_data);
  }
  return py::make_tuple(boxes, scores);
}

const Bindings bindings([](py::module_& module) {
  using py::arg;
  module.def("decode_detections", &decode_detections_binding, arg("logits"), arg("deltas"), arg("proposals"),
             arg("count"), arg("image_sizes"), arg("max_ratio"), arg("means") = std::vector<float>(4, 0.f),
             arg("stds") = std::vector<float>(4, 1.f), arg("clip") = true,
             R"(Return every class's box and score of every proposal: (B, P * C, 4) float32, (B, P * C) float32.

logits: (B, P, C + 1) float32, the background last. deltas: (B, P, 4 * C) float32; with (B, P, 4) all classes have one
box. proposals: (B, P, 4) float32 [x1, y1, x2, y2] in px. count: (B,) int32, the rows that are real. image_sizes: (B, 2)
float32, height and width in px. means, stds: of the deltas. max_ratio: the largest change of log width and height.
clip: to the image. Candidate p * C + c is proposal p as class c; its score is softmax's, -1 from row count on, and NaN
where a logit of the proposal is. ValueError names the argument that has another shape, dtype or range.

Source: mmdet's BBoxHead and delta2bbox.)");
});

}  // namespace
}  // namespace maskrcnn
