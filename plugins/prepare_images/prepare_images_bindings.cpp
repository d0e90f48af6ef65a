#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "plugins/common/bindings.h"
#include "plugins/common/numpy_arrays.h"
#include "plugins/prepare_images/prepare_images_reference.h"

namespace maskrcnn {
namespace {

py::array_t<float> prepare_images_binding(const std::vector<py::array>& images,
                                          const std::vector<std::pair<int64_t, int64_t>>& sizes, int64_t height,
                                          int64_t width, const py::array& tables, bool reverse_channels,
                                          float pad_value) {
  const auto is_size = [](int64_t size, int64_t at_most) { return size >= 1 && size <= at_most; };
  check(is_size(height, kMaxImageSize) && is_size(width, kMaxImageSize),
        "height, width: expected 1 to " + std::to_string(kMaxImageSize) + ", found " + std::to_string(height) + ", " +
            std::to_string(width));
  check(images.size() == sizes.size(), "sizes: expected one (height, width) per image, found " +
                                           std::to_string(images.size()) + " images, " + std::to_string(sizes.size()) +
                                           " sizes");
  const auto* table_data = checked_data<float>("tables", tables, {3, kTableSize});
  PrepareImagesInput in{{}, static_cast<int>(height), static_cast<int>(width), table_data, reverse_channels};
  for (size_t i = 0; i < images.size(); ++i) {
    const auto* pixels = checked_data<uint8_t>("images", images[i], {kAny, kAny, 3});
    check(is_size(images[i].shape(0), kMaxImageSize) && is_size(images[i].shape(1), kMaxImageSize),
          "images: expected a height and width of 1 to " + std::to_string(kMaxImageSize) + ", found " +
              describe(images[i]));
    const auto [resized_height, resized_width] = sizes[i];
    check(is_size(resized_height, height) && is_size(resized_width, width),
          "sizes: expected 1 x 1 to " + std::to_string(height) + " x " + std::to_string(width) + ", found " +
              std::to_string(resized_height) + " x " + std::to_string(resized_width));
    in.images.push_back({pixels, static_cast<int>(images[i].shape(0)), static_cast<int>(images[i].shape(1)),
                         static_cast<int>(resized_height), static_cast<int>(resized_width)});
  }
  auto output = new_zeros<float>({static_cast<py::ssize_t>(images.size()), 3, height, width});
  auto* output_data = output.mutable_data();
  {
    const py::gil_scoped_release release;
    std::fill_n(output_data, output.size(), pad_value);
    prepare_images(in, output_data);
  }
  return output;
}

const Bindings bindings([](py::module_& module) {
  using py::arg;
  module.def("prepare_images", &prepare_images_binding, arg("images"), arg("sizes"), arg("height"), arg("width"),
             arg("tables"), arg("reverse_channels"), arg("pad_value") = 0.f,
             R"(Return images resized, normalised, padded with pad_value and stacked: (B, 3, height, width) float32.

images: list of (H_i, W_i, 3) uint8, BGR. sizes: list of (height, width) in px, what each is resized to, within the
output's. tables: (3, 256) float32, the normalised value of each value of a pixel, per output channel. reverse_channels:
output channel 0 is the image's channel 2. No images give (0, 3, height, width). ValueError names the argument that has
another shape, dtype or range.

Source: cv2.resize(INTER_LINEAR), OpenCV's generic path, bit for bit.)");
});

}  // namespace
}  // namespace maskrcnn
