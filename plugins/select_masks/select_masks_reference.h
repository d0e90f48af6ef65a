// Each detection's own mask on the CPU: the loops around select_masks_math.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plugins/common/parallel_for.h"
#include "plugins/common/sigmoid.h"
#include "plugins/select_masks/select_masks_math.h"

namespace maskrcnn {

struct SelectMasksInput {
  const float* logits;    // (num_masks, channels, num_pixels) in `layout`
  const int32_t* labels;  // (num_masks,)
  int64_t num_masks;
  int64_t channels;
  int64_t num_pixels;
  TensorLayout layout;
};

// masks: (num_masks, num_pixels).
inline void select_masks(const SelectMasksInput& in, float* masks) {
  parallel_for(in.num_masks, [&](int64_t index) {
    float* mask = masks + index * in.num_pixels;
    const int64_t channel = mask_channel(in.labels[index], in.channels);
    if (channel == kNoMask) {
      std::fill(mask, mask + in.num_pixels, 0.f);
      return;
    }
    const MaskLogits at = mask_logits(index, channel, in.channels, in.num_pixels, in.layout);
    for (int64_t i = 0; i < in.num_pixels; ++i) mask[i] = sigmoid(in.logits[at.first + i * at.step]);
  });
}

}  // namespace maskrcnn
