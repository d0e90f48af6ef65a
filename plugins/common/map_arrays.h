// Feature maps of four axes as NumPy arguments, in any of the layouts.
#pragma once

#include <pybind11/numpy.h>

#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include "plugins/common/numpy_arrays.h"
#include "plugins/common/strides.h"
#include "plugins/common/tensor_types.h"

namespace maskrcnn {

inline TensorLayout checked_layout(const std::string& layout) {
  if (layout == "nchw") return TensorLayout::kNchw;
  if (layout == "nhwc") return TensorLayout::kNhwc;
  if (layout == "nhwc8") return TensorLayout::kNhwc8;
  throw py::value_error("layout: expected 'nchw', 'nhwc' or 'nhwc8', found '" + layout + "'");
}

// The elements of (batch, channels, height, width) maps that are stored in the layout.
inline const float* checked_maps(const char* name, const py::array& maps, std::array<int64_t, 4> shape,
                                 TensorLayout layout) {
  const auto [batch, channels, height, width] = shape;
  const int64_t stored = stored_channels(channels, layout);
  return layout == TensorLayout::kNchw ? checked_data<float>(name, maps, {batch, stored, height, width})
                                       : checked_data<float>(name, maps, {batch, height, width, stored});
}

// Height and width of maps of four axes.
inline std::pair<int64_t, int64_t> map_size(const py::array& maps, TensorLayout layout) {
  const int first = layout == TensorLayout::kNchw ? 2 : 1;
  return {maps.shape(first), maps.shape(first + 1)};
}

}  // namespace maskrcnn
