#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "plugins/common/bindings.h"
#include "plugins/common/map_arrays.h"
#include "plugins/common/numpy_arrays.h"
#include "plugins/select_masks/select_masks_reference.h"

namespace maskrcnn {
namespace {

py::array_t<float> select_masks_binding(const py::array& logits, const py::array& labels, int64_t channels,
                                        const std::string& layout_name) {
  const TensorLayout layout = checked_layout(layout_name);
  check(channels >= 1, "channels: expected at least 1, found " + std::to_string(channels));
  const auto* label_data = checked_data<int32_t>("labels", labels, {kAny, kAny});
  const auto batch = labels.shape(0);
  const auto num_masks = labels.shape(1);
  const auto* logit_data = checked_maps("logits", logits, {batch * num_masks, channels, kAny, kAny}, layout);
  const auto [height, width] = map_size(logits, layout);
  auto masks = new_array<float>({batch, num_masks, height, width});
  auto* mask_data = masks.mutable_data();
  {
    const py::gil_scoped_release release;
    select_masks({logit_data, label_data, batch * num_masks, channels, height * width, layout}, mask_data);
  }
  return masks;
}

const Bindings bindings([](py::module_& module) {
  using py::arg;
  module.def("select_masks", &select_masks_binding, arg("logits"), arg("labels"), arg("channels"),
             arg("layout") = "nchw",
             R"(Return the probabilities of each detection's own mask: (B, K, h, w) float32.

logits: (B * K, channels, h, w) float32; (B * K, h, w, channels) in layout 'nhwc', the same with channels rounded up to
a multiple of 8 in 'nhwc8'. labels: (B, K) int32: the channel; -1 gives zeros, one too large means the last, so that one
channel serves every class. ValueError names the argument that has another shape, dtype or range.

Source: mmdet's FCNMaskHead.)");
});

}  // namespace
}  // namespace maskrcnn
