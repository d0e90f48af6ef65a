// Which of a detection's masks is its own, and where its logits lie.
#pragma once

#include <cstdint>

#include "plugins/common/host_device.h"
#include "plugins/common/strides.h"

namespace maskrcnn {

constexpr int64_t kNoMask = -1;

// The channel of a label; kNoMask for a negative one. Labels are data: one that is too large means the last channel, so
// that a head of one channel (class-agnostic) has that one for every label.
MASKRCNN_HOST_DEVICE int64_t mask_channel(int32_t label, int64_t channels) {
  if (label < 0) return kNoMask;
  return label < channels ? label : channels - 1;
}

// The logits of one mask: pixel i (row after row) is at first + i * step. In elements.
struct MaskLogits {
  int64_t first;
  int64_t step;
};

// channel: 0 to channels - 1. num_pixels: of a mask.
MASKRCNN_HOST_DEVICE MaskLogits mask_logits(int64_t mask, int64_t channel, int64_t channels, int64_t num_pixels,
                                            TensorLayout layout) {
  const Strides strides = strides_of(channels, 1, num_pixels, layout);
  return {mask * strides.image + channel * strides.channel, strides.column};
}

}  // namespace maskrcnn
