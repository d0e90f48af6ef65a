// What DecodeDetections computes of one class of one proposal; the box is decode_box's.
#pragma once

#include <cmath>
#include <cstdint>

#include "plugins/common/box_decoding.h"
#include "plugins/common/host_device.h"

namespace maskrcnn {

// largest: of the proposal's logits, by fmaxf, so that nothing overflows. fmaxf passes over NaN; here a NaN logit gives
// NaN, and so does a largest one that is infinite. Their sum then makes NaN of every class.
MASKRCNN_HOST_DEVICE float softmax_numerator(float logit, float largest) { return expf(logit - largest); }

// Where the four deltas of a class are. row: of all proposals of the batch.
MASKRCNN_HOST_DEVICE int64_t deltas_offset(int64_t row, int32_t label, int32_t num_classes, bool class_agnostic) {
  return 4 * (class_agnostic ? row : row * num_classes + label);
}

}  // namespace maskrcnn
