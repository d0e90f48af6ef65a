// Casting masks on the CPU: the loop around cast_masks_math.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plugins/cast_masks/cast_masks_math.h"
#include "plugins/common/parallel_for.h"

namespace maskrcnn {

inline void cast_masks(const float* values, int64_t num_values, uint8_t* output) {
  constexpr int64_t kValuesPerTask = 1 << 16;
  parallel_for((num_values + kValuesPerTask - 1) / kValuesPerTask, [&](int64_t task) {
    const int64_t end = std::min(num_values, (task + 1) * kValuesPerTask);
    for (int64_t i = task * kValuesPerTask; i < end; ++i) output[i] = byte_from_float(values[i]);
  });
}

}  // namespace maskrcnn
