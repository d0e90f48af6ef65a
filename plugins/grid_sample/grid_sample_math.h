// Per-coordinate maths of grid_sample, as in torch (aten/src/ATen/native/cuda/GridSampler.cuh).
#pragma once

#include <cmath>
#include <cstdint>

#include "plugins/common/host_device.h"
#include "plugins/grid_sample/grid_sample_kernel.h"

namespace maskrcnn {

// From -1 ... 1 to pixels of an axis.
MASKRCNN_HOST_DEVICE float grid_position(float coordinate, int64_t size, bool align_corners) {
  const float extent = static_cast<float>(size);
  if (align_corners) return (coordinate + 1.f) / 2.f * (extent - 1.f);
  return (unfused_product(coordinate + 1.f, extent) - 1.f) / 2.f;
}

// Mirrors a position at half the bounds given, as often as it takes.
MASKRCNN_HOST_DEVICE float reflected(float position, int64_t twice_low, int64_t twice_high) {
  if (twice_low == twice_high) return 0.f;
  const float low = static_cast<float>(twice_low) / 2.f;
  const float span = static_cast<float>(twice_high - twice_low) / 2.f;
  const float distance = fabsf(position - low);
  const float extra = fmodf(distance, span);
  // The number of mirrorings is odd; as a float, because it may be beyond any integer.
  const bool flipped = fmodf(floorf(distance / span), 2.f) != 0.f;
  return flipped ? span - extra + low : extra + low;
}

// Applies the padding rule. The result is finite and fits an int; what does not becomes -100, outside every map.
MASKRCNN_HOST_DEVICE float padded_position(float position, int64_t size, Padding padding, bool align_corners) {
  const float last = static_cast<float>(size - 1);
  if (padding == Padding::kReflection) {
    position = align_corners ? reflected(position, 0, 2 * (size - 1)) : reflected(position, -1, 2 * size - 1);
  }
  if (padding != Padding::kZeros) position = fminf(last, fmaxf(position, 0.f));
  return position > -2147483648.f && position < 2147483520.f ? position : -100.f;
}

// The four weights of a position t behind the second of four pixels (Keys' kernel with a = -0.75).
MASKRCNN_HOST_DEVICE void cubic_weights(float t, float (&weights)[4]) {
  constexpr float kA = -0.75f;
  const float far_left = t + 1.f;
  const float right = 1.f - t;
  const float far_right = 2.f - t;
  weights[0] = ((kA * far_left - 5.f * kA) * far_left + 8.f * kA) * far_left - 4.f * kA;
  weights[1] = ((kA + 2.f) * t - (kA + 3.f)) * t * t + 1.f;
  weights[2] = ((kA + 2.f) * right - (kA + 3.f)) * right * right + 1.f;
  weights[3] = ((kA * far_right - 5.f * kA) * far_right + 8.f * kA) * far_right - 4.f * kA;
}

}  // namespace maskrcnn
