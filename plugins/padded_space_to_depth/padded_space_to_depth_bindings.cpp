#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "plugins/common/bindings.h"
#include "plugins/common/numpy_arrays.h"
#include "plugins/common/parallel_for.h"

namespace maskrcnn {
namespace {

constexpr int64_t kBlock = 2;

// A row of blocks of one image: (4 * channels, columns) of the output, whose channels are `plane` elements apart.
struct BlockRow {
  const float* image;  // (channels, height, width)
  int64_t channels, height, width;
  int64_t y, x;  // of the first block's first pixel, in px of the image: negative where it is padding
  int64_t columns;
};

void fill_row(const BlockRow& in, float* blocks, int64_t plane) {
  for (int64_t row = 0; row < kBlock; ++row) {
    for (int64_t column = 0; column < kBlock; ++column) {
      for (int64_t channel = 0; channel < in.channels; ++channel) {
        float* out = blocks + ((row * kBlock + column) * in.channels + channel) * plane;
        const int64_t y = in.y + row;
        for (int64_t i = 0; i < in.columns; ++i) {
          const int64_t x = in.x + i * kBlock + column;
          const bool inside = y >= 0 && y < in.height && x >= 0 && x < in.width;
          out[i] = inside ? in.image[(channel * in.height + y) * in.width + x] : 0.f;
        }
      }
    }
  }
}

py::array_t<float> padded_space_to_depth(const py::array& images, const std::array<int64_t, 4>& pads) {
  const float* data = checked_data<float>("images", images, {kAny, kAny, kAny, kAny});
  constexpr int64_t kMaxPad = 32767;
  for (const int64_t pad : pads) {
    check(pad >= 0 && pad <= kMaxPad,
          "pads: expected 0 to " + std::to_string(kMaxPad) + ", found " + std::to_string(pad));
  }
  const int64_t batch = images.shape(0), channels = images.shape(1);
  const int64_t height = images.shape(2), width = images.shape(3);
  const int64_t padded_height = pads[0] + height + pads[2], padded_width = pads[1] + width + pads[3];
  check(padded_height % kBlock == 0 && padded_width % kBlock == 0,
        "images: expected height and width that are even with the pads, found " + std::to_string(padded_height) +
            " and " + std::to_string(padded_width));
  const int64_t rows = padded_height / kBlock, columns = padded_width / kBlock;
  auto blocks = new_array<float>({batch, kBlock * kBlock * channels, rows, columns});
  auto* block_data = blocks.mutable_data();
  {
    const py::gil_scoped_release release;
    parallel_for(batch * rows, [&](int64_t task) {
      const int64_t index = task / rows, row = task % rows;
      const BlockRow in{
          data + index * channels * height * width, channels, height, width, row * kBlock - pads[0], -pads[1], columns};
      fill_row(in, block_data + (index * kBlock * kBlock * channels * rows + row) * columns, rows * columns);
    });
  }
  return blocks;
}

const Bindings bindings([](py::module_& module) {
  using py::arg;
  module.def(
      "padded_space_to_depth", &padded_space_to_depth, arg("images"), arg("pads"),
      R"(Return blocks of 2 x 2 pixels of padded images: (B, 4 * C, (top + H + bottom) / 2, (left + W + right) / 2).

images: (B, C, H, W) float32. pads: top, left, bottom, right, each 0 to 32767 px of zeros; the padded height and width
are even. Channels are by row in the block, column in the block, then by channel. ValueError names the argument that has
another shape, dtype or range.

Source: ONNX Pad (constant 0), then SpaceToDepth of blocksize 2.)");
});

}  // namespace
}  // namespace maskrcnn
