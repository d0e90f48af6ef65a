#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "plugins/common/bindings.h"
#include "plugins/common/numpy_arrays.h"
#include "plugins/paste_masks/paste_masks_reference.h"

namespace maskrcnn {
namespace {

py::array_t<uint8_t> paste_masks_binding(const py::array& masks, const py::array& boxes, int64_t height, int64_t width,
                                         float threshold) {
  constexpr int64_t kMaxSize = 1 << 24;  // up to here float32 holds every pixel index
  const auto* mask_data = checked_data<float>("masks", masks, {kAny, kAny, kAny});
  const auto num_masks = masks.shape(0);
  const auto* box_data = checked_data<float>("boxes", boxes, {num_masks, 4});
  check(masks.shape(1) >= 1 && masks.shape(1) <= kMaxSize && masks.shape(2) >= 1 && masks.shape(2) <= kMaxSize,
        "masks: expected at least 1 x 1 cells, found " + describe(masks));
  check(height >= 0 && height <= kMaxSize && width >= 0 && width <= kMaxSize,
        "height, width: expected 0 to " + std::to_string(kMaxSize) + ", found " + std::to_string(height) + ", " +
            std::to_string(width));
  check(threshold >= 0.f && threshold <= 1.f,
        "threshold: expected a probability from 0 to 1, found " + std::to_string(threshold));
  auto images = new_zeros<uint8_t>({num_masks, height, width});
  auto* image_data = images.mutable_data();
  {
    const py::gil_scoped_release release;
    paste_masks({mask_data, box_data, static_cast<int>(masks.shape(1)), static_cast<int>(masks.shape(2)),
                 static_cast<int>(height), static_cast<int>(width), threshold},
                num_masks, image_data);
  }
  return images;
}

const Bindings bindings([](py::module_& module) {
  using py::arg;
  module.def("paste_masks", &paste_masks_binding, arg("masks"), arg("boxes"), arg("height"), arg("width"),
             arg("threshold") = 0.5f,
             R"(Return masks pasted into images: (N, height, width) uint8, 1 where the probability >= threshold.

masks: (N, h, w) float32 probabilities. boxes: (N, 4) float32 [x1, y1, x2, y2] in image px. threshold: 0 to 1. Pixels
more than one px outside the box are 0, as are those where box or mask is NaN. ValueError names the argument that has
another shape, dtype or range.

Source: mmdet's _do_paste_mask with skip_empty=True.)");
});

}  // namespace
}  // namespace maskrcnn
