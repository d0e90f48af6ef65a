// INT8 output: a value in units of a scale.
#pragma once

#include <cmath>
#include <cstdint>

#include "plugins/common/host_device.h"

namespace maskrcnn {

// ONNX's QuantizeLinear with zero point 0: the quotient, rounded half to even, within -128 to 127. NaN becomes 0.
MASKRCNN_HOST_DEVICE int8_t quantized(float value, float scale) {
  const float steps = rintf(value / scale);
  if (steps >= 127.f) return 127;
  if (steps <= -128.f) return -128;
  return steps == steps ? static_cast<int8_t>(steps) : static_cast<int8_t>(0);
}

}  // namespace maskrcnn
