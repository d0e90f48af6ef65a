// Every class's score and box of every proposal on the CPU: the loops around decode_detections_math.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "plugins/common/parallel_for.h"
#include "plugins/decode_detections/decode_detections_math.h"

namespace maskrcnn {

struct DecodeDetectionsInput {
  const float* logits;       // (batch, num_proposals, num_classes + 1)
  const float* deltas;       // (batch, num_proposals, 4 * num_classes), or 4 where class_agnostic
  const float* proposals;    // (batch, num_proposals, 4)
  const int32_t* count;      // (batch,)
  const float* image_sizes;  // (batch, 2)
  int64_t batch;
  int64_t num_proposals;
  int32_t num_classes;
  bool class_agnostic;
  BoxDecoding decoding;
};

// scores: (num_classes,).
inline void softmax_scores(const float* logits, int32_t num_classes, float* scores) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int32_t i = 0; i <= num_classes; ++i) largest = fmaxf(largest, logits[i]);
  // A thousand classes one after the other lose digits in float, unlike the kernel's sums of some tens.
  double terms = 0.;
  for (int32_t i = 0; i <= num_classes; ++i) terms += softmax_numerator(logits[i], largest);
  const float sum = static_cast<float>(terms);
  for (int32_t i = 0; i < num_classes; ++i) scores[i] = softmax_numerator(logits[i], largest) / sum;
}

// boxes: (num_classes, 4).
inline void decode_row(const DecodeDetectionsInput& in, int64_t row, float* boxes) {
  const float* size = in.image_sizes + row / in.num_proposals * 2;
  const float* corners = in.proposals + row * 4;
  const Box proposal{corners[0], corners[1], corners[2], corners[3]};
  for (int32_t label = 0; label < in.num_classes; ++label) {
    const float* at = in.deltas + deltas_offset(row, label, in.num_classes, in.class_agnostic);
    const float deltas[4] = {at[0], at[1], at[2], at[3]};
    const Box box = decode_box(in.decoding, proposal, deltas, size[0], size[1]);
    float* out = boxes + label * int64_t{4};
    out[0] = box.x1;
    out[1] = box.y1;
    out[2] = box.x2;
    out[3] = box.y2;
  }
}

// boxes: (batch, num_proposals * num_classes, 4), scores: (batch, num_proposals * num_classes).
inline void decode_detections(const DecodeDetectionsInput& in, float* boxes, float* scores) {
  parallel_for(in.batch * in.num_proposals, [&](int64_t row) {
    const int64_t first = row * in.num_classes;
    decode_row(in, row, boxes + first * 4);
    if (row % in.num_proposals < in.count[row / in.num_proposals]) {
      softmax_scores(in.logits + row * (in.num_classes + int64_t{1}), in.num_classes, scores + first);
    } else {
      std::fill(scores + first, scores + first + in.num_classes, kNoCandidate);
    }
  });
}

}  // namespace maskrcnn
