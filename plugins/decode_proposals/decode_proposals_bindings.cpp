#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "plugins/common/bindings.h"
#include "plugins/common/box_decoding_array.h"
#include "plugins/common/map_arrays.h"
#include "plugins/common/numpy_arrays.h"
#include "plugins/decode_proposals/decode_proposals_reference.h"

namespace maskrcnn {
namespace {

std::vector<ReferenceProposalLevel> checked_levels(const std::vector<py::array>& logits,
                                                   const std::vector<py::array>& deltas,
                                                   const std::vector<int64_t>& top, int64_t num_anchors,
                                                   py::ssize_t batch, TensorLayout layout,
                                                   const std::vector<float>& strides) {
  constexpr int64_t kMaxAnchors = 1 << 24;
  check(!logits.empty() && logits.size() == deltas.size() && logits.size() == top.size(),
        "logits, deltas, top: expected one of each per level and at least one level, found " +
            std::to_string(logits.size()) + ", " + std::to_string(deltas.size()) + ", " + std::to_string(top.size()));
  check(num_anchors >= 1, "num_anchors: expected at least 1, found " + std::to_string(num_anchors));
  std::vector<ReferenceProposalLevel> levels;
  int64_t first_prior = 0;
  int64_t first_row = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto* logit_data = checked_maps("logits", logits[i], {batch, num_anchors, kAny, kAny}, layout);
    const auto [height, width] = map_size(logits[i], layout);
    const auto* delta_data = checked_maps("deltas", deltas[i], {batch, num_anchors * kDeltas, height, width}, layout);
    const int64_t count = num_anchors * height * width;
    check(count >= 1 && count <= kMaxAnchors,
          "logits: expected levels of 1 to " + std::to_string(kMaxAnchors) + " anchors, found " + describe(logits[i]));
    check(top[i] >= 1, "top: expected numbers of at least 1, found " + std::to_string(top[i]));
    const bool has_strides = !strides.empty();
    levels.push_back({logit_data, delta_data, height, width, top[i], first_prior, first_row,
                      has_strides ? strides[2 * i] : 0.f, has_strides ? strides[2 * i + 1] : 0.f});
    first_prior += has_strides ? num_anchors : count;
    first_row += top[i];
  }
  return levels;
}

py::tuple decode_proposals_binding(const std::vector<py::array>& logits, const std::vector<py::array>& deltas,
                                   const py::array& priors, const py::array& image_sizes,
                                   const std::vector<int64_t>& top, int64_t num_anchors, float max_ratio,
                                   const std::vector<float>& means, const std::vector<float>& stds, bool clip,
                                   float min_size, const std::string& layout_name,
                                   const std::vector<float>& strides) {
  const TensorLayout layout = checked_layout(layout_name);
  const auto* size_data = checked_data<float>("image_sizes", image_sizes, {kAny, 2});
  const auto batch = image_sizes.shape(0);
  DecodeProposalsInput in{};
  check(strides.empty() || strides.size() == 2 * logits.size(),
        "strides: expected none, or x and y of every level, found " + std::to_string(strides.size()) + " numbers");
  for (const float stride : strides) {
    check(stride > 0.f && std::isfinite(stride), "strides: expected numbers above 0, found " + std::to_string(stride));
  }
  in.levels = checked_levels(logits, deltas, top, num_anchors, batch, layout, strides);
  const ReferenceProposalLevel& last = in.levels.back();
  const int64_t own = strides.empty() ? num_anchors * last.height * last.width : num_anchors;
  const int64_t num_priors = last.first_prior + own;
  in.batch = batch;
  in.num_anchors = num_anchors;
  in.layout = layout;
  in.priors = checked_data<float>("priors", priors, {num_priors, 4});
  in.image_sizes = size_data;
  in.decoding = checked_decoding(means, stds, max_ratio, clip);
  in.min_size = min_size;
  auto boxes = new_array<float>({batch, last.first_row + last.top, 4});
  auto scores = new_array<float>({batch, last.first_row + last.top});
  auto* box_data = boxes.mutable_data();
  auto* score_data = scores.mutable_data();
  {
    const py::gil_scoped_release release;
    decode_proposals(in, box_data, score_data);
  }
  return py::make_tuple(boxes, scores);
}

const Bindings bindings([](py::module_& module) {
  using py::arg;
  module.def("decode_proposals", &decode_proposals_binding, arg("logits"), arg("deltas"), arg("priors"),
             arg("image_sizes"), arg("top"), arg("num_anchors"), arg("max_ratio"),
             arg("means") = std::vector<float>(4, 0.f), arg("stds") = std::vector<float>(4, 1.f), arg("clip") = true,
             arg("min_size") = -1.f, arg("layout") = "nchw", arg("strides") = std::vector<float>(),
             R"(Return the best anchors of every level as boxes: (B, M, 4) float32, (B, M) float32, M the sum of top.

logits, deltas: lists of L (B, A, H_l, W_l) and (B, 4 * A, H_l, W_l) float32, A = num_anchors; (B, H_l, W_l, channels)
in layout 'nhwc', the same with channels rounded up to a multiple of 8 in 'nhwc8'. priors: (N, 4) float32
[x1, y1, x2, y2] in px, level after level, in a level by y, x and anchor; with strides, x and y of each level in px, N
is L * A: the anchors of place 0, 0 of each level, which the others have moved by the strides. image_sizes: (B, 2)
float32, height and width in px. top: L numbers of rows. means, stds: of the deltas. max_ratio: the largest change of
log width and height.
clip: to the image. A level's rows are its best scores, sigmoid(logit), equal ones by anchor, NaN last. The score is -1
where a level has no more anchors, and there the box is 0; and where a side of the box is not longer than min_size px,
if that is not below 0. ValueError names the argument that has another shape, dtype or range.

Source: mmdet's RPNHead and delta2bbox.)");
});

}  // namespace
}  // namespace maskrcnn
