// Where the elements of a (batch, channels, height, width) tensor lie, for the host and the device.
#pragma once

#include <cstdint>

#include "plugins/common/host_device.h"
#include "plugins/common/tensor_types.h"

namespace maskrcnn {

// In elements. In every layout a row is `width` columns: pixel y * width + x is at that number times `column`. Of kNchw32
// `channel` leads through a block of 32 channels; channel_offset leads to any.
struct Strides {
  int64_t image, channel, row, column;
};

MASKRCNN_HOST_DEVICE Strides strides_of(int64_t channels, int64_t height, int64_t width, TensorLayout layout) {
  if (layout == TensorLayout::kNchw) return {channels * height * width, height * width, width, 1};
  const int64_t stored = stored_channels(channels, layout);
  const int64_t column = layout == TensorLayout::kNchw32 ? kBlockedChannels : stored;
  return {height * width * stored, 1, width * column, column};
}

// From an image's first element to the first of a channel.
MASKRCNN_HOST_DEVICE int64_t channel_offset(int64_t channel, int64_t height, int64_t width, TensorLayout layout) {
  if (layout == TensorLayout::kNchw) return channel * height * width;
  if (layout != TensorLayout::kNchw32) return channel;
  const int64_t in_block = channel % kBlockedChannels;
  return (channel - in_block) * height * width + in_block;
}

}  // namespace maskrcnn
