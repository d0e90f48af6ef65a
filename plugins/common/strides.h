// Where the elements of a (batch, channels, height, width) tensor lie, for the host and the device.
#pragma once

#include <cstdint>

#include "plugins/common/host_device.h"
#include "plugins/common/tensor_types.h"

namespace maskrcnn {

// In elements. In every layout a row is `width` columns: pixel y * width + x is at that number times `column`.
struct Strides {
  int64_t image, channel, row, column;
};

MASKRCNN_HOST_DEVICE Strides strides_of(int64_t channels, int64_t height, int64_t width, TensorLayout layout) {
  if (layout == TensorLayout::kNchw) return {channels * height * width, height * width, width, 1};
  const int64_t stored = stored_channels(channels, layout);
  return {height * width * stored, 1, width * stored, stored};
}

}  // namespace maskrcnn
