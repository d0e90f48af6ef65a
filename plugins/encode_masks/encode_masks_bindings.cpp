#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "plugins/common/bindings.h"
#include "plugins/common/numpy_arrays.h"
#include "plugins/encode_masks/encode_masks_reference.h"

namespace maskrcnn {
namespace {

std::vector<TargetImage> checked_images(const py::array& sizes, const py::array& scales, py::ssize_t batch) {
  const auto* size_data = checked_data<int32_t>("sizes", sizes, {batch, 2});
  const auto* scale_data = checked_data<float>("scales", scales, {batch, 2});
  std::vector<TargetImage> images;
  for (py::ssize_t i = 0; i < batch; ++i) {
    images.push_back({size_data[2 * i], size_data[2 * i + 1], scale_data[2 * i], scale_data[2 * i + 1]});
    check(is_valid(images[i]),
          "sizes: expected heights and widths of 0 to 16777216 px and at most 2147483647 pixels, as COCO's counts have "
          "32 bits, found " +
              std::to_string(images[i].height) + " x " + std::to_string(images[i].width));
  }
  return images;
}

py::list encode_masks_binding(const py::array& masks, const py::array& dets, const py::array& num_dets,
                              const py::array& sizes, const py::array& scales, float threshold, float min_score) {
  const auto* mask_data = checked_data<float>("masks", masks, {kAny, kAny, kAny, kAny});
  const auto batch = masks.shape(0);
  const auto max_dets = masks.shape(1);
  const auto* det_data = checked_data<float>("dets", dets, {batch, max_dets, 5});
  const auto* count_data = checked_data<int32_t>("num_dets", num_dets, {batch});
  const std::vector<TargetImage> images = checked_images(sizes, scales, batch);
  check(
      masks.shape(2) >= 1 && masks.shape(2) <= kMaxMaskCells && masks.shape(3) >= 1 && masks.shape(3) <= kMaxMaskCells,
      "masks: expected 1 to " + std::to_string(kMaxMaskCells) + " cells per axis, found " + describe(masks));
  std::vector<std::string> strings;
  {
    const py::gil_scoped_release release;
    strings = encode_masks({images.data(), mask_data, det_data, count_data, batch, max_dets,
                            static_cast<int>(masks.shape(2)), static_cast<int>(masks.shape(3)), threshold, min_score});
  }
  py::list out;
  for (py::ssize_t b = 0; b < batch; ++b) {
    py::list own;
    for (py::ssize_t k = 0; k < max_dets; ++k) own.append(py::bytes(strings[b * max_dets + k]));
    out.append(own);
  }
  return out;
}

const Bindings bindings([](py::module_& module) {
  using py::arg;
  module.def("encode_masks", &encode_masks_binding, arg("masks"), arg("dets"), arg("num_dets"), arg("sizes"),
             arg("scales"), arg("threshold") = 0.5f, arg("min_score") = -std::numeric_limits<float>::infinity(),
             R"(Return each mask's counts as COCO compresses them, pasted at its image's own size: B lists of K bytes.

masks: (B, K, h, w) float32 probabilities, h and w up to 1024. dets: (B, K, 5) float32, [x1, y1, x2, y2, score] in
network px. num_dets: (B,) int32. sizes: (B, 2) int32, the target images' heights and widths in px. scales: (B, 2)
float32, network px per target px in x and in y. A pixel is set where the probability is at least threshold. b'' past
num_dets, and where the score is not at least min_score; no mask's counts are that. ValueError names the argument that
has another shape, dtype or range.

Source: mmdet's _do_paste_mask with skip_empty=True; pycocotools' rleEncode and rleToString.)");
});

}  // namespace
}  // namespace maskrcnn
