// How a launcher's caller describes the data behind a pointer. Plain C++: TensorRT adapters, tests and kernels share it.
#pragma once

#include <cstdint>

#include "plugins/common/host_device.h"

namespace maskrcnn {

enum class ElementType { kFloat, kHalf, kInt8, kUint8, kBool };

// The order of a (batch, channels, height, width) tensor's elements in memory.
enum class TensorLayout {
  kNchw,    // TensorRT's kLINEAR
  kNhwc,    // TensorRT's kHWC: channels last, dense
  kNhwc8,   // TensorRT's kHWC8: channels last, their number padded to a multiple of 8
  kNchw32,  // TensorRT's kCHW32: (batch, ceil(channels / 32), height, width, 32), padded; of INT8 alone
};

constexpr int64_t kBlockedChannels = 32;  // of kNchw32

MASKRCNN_HOST_DEVICE int64_t stored_channels(int64_t channels, TensorLayout layout) {
  if (layout == TensorLayout::kNhwc8) return (channels + 7) / 8 * 8;
  if (layout == TensorLayout::kNchw32) return (channels + kBlockedChannels - 1) / kBlockedChannels * kBlockedChannels;
  return channels;
}

}  // namespace maskrcnn
