// From float32 to the uint8 that it stands for.
#pragma once

#include <cstdint>

#include "plugins/common/host_device.h"

namespace maskrcnn {

// Rounds towards zero, as a cast does. What a uint8 cannot hold becomes the nearest that it can, NaN becomes 0.
MASKRCNN_HOST_DEVICE uint8_t byte_from_float(float value) {
  if (!(value > 0.f)) return 0;
  return value < 255.f ? static_cast<uint8_t>(value) : 255;
}

}  // namespace maskrcnn
