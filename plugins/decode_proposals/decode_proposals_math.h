// One anchor of an RPN, for the host and the device: where its values lie, its box.
#pragma once

#include <cstdint>

#include "plugins/common/box.h"
#include "plugins/common/box_decoding.h"
#include "plugins/common/host_device.h"
#include "plugins/common/strides.h"

namespace maskrcnn {

constexpr int kDecodeProposalsMaxLevels = 8;
constexpr int kDeltas = 4;  // of a box

// An anchor of a level by its index, (y * width + x) * anchors + anchor: the order of priors.
struct AnchorPlace {
  int64_t pixel;   // y * width + x
  int64_t anchor;  // of the pixel
};

MASKRCNN_HOST_DEVICE AnchorPlace anchor_place(uint32_t index, uint32_t num_anchors) {
  const uint32_t pixel = index / num_anchors;
  return {pixel, index - pixel * num_anchors};
}

// Offsets in one image's map, of (anchors, height, width) logits and of (anchors * 4, height, width) deltas.
MASKRCNN_HOST_DEVICE int64_t logit_offset(const Strides& strides, const AnchorPlace& place) {
  return place.anchor * strides.channel + place.pixel * strides.column;
}

MASKRCNN_HOST_DEVICE int64_t delta_offset(const Strides& strides, const AnchorPlace& place, int which) {
  return (place.anchor * kDeltas + which) * strides.channel + place.pixel * strides.column;
}

// Of a level. Without strides every place has anchors of its own; with them, anchors are those of the first place,
// moved to the others as mmdet's AnchorGenerator moves them.
struct LevelPriors {
  const float* boxes;       // the level's: (height * width * anchors, 4) or, with strides, (anchors, 4)
  float stride_x, stride_y;  // px from place to place; 0 without
};

MASKRCNN_HOST_DEVICE Box load_prior(const LevelPriors& priors, uint32_t index, const AnchorPlace& place, uint32_t width) {
  if (!(priors.stride_x > 0.f)) return load_box(priors.boxes + static_cast<int64_t>(index) * 4);
  const auto pixel = static_cast<uint32_t>(place.pixel);
  const uint32_t row = pixel / width;
  const float x = unfused_product(static_cast<float>(pixel - row * width), priors.stride_x);
  const float y = unfused_product(static_cast<float>(row), priors.stride_y);
  const Box base = load_box(priors.boxes + place.anchor * 4);
  return {x + base.x1, y + base.y1, x + base.x2, y + base.y2};
}

struct Proposal {
  Box box;
  float score;  // sigmoid(logit): anchors are ranked by it, not by the logit, so that saturated ones tie, as in mmdet
};

// min_size: px; a box of which a side is not longer is none, unless min_size is below 0. NaN sides are not longer.
MASKRCNN_HOST_DEVICE Proposal decode_proposal(const BoxDecoding& decoding, float min_size, const Box& prior,
                                              const float (&deltas)[kDeltas], float score, float image_height,
                                              float image_width) {
  const Box box = decode_box(decoding, prior, deltas, image_height, image_width);
  const bool is_large = box.x2 - box.x1 > min_size && box.y2 - box.y1 > min_size;
  return {box, min_size < 0.f || is_large ? score : kNoCandidate};
}

// What fills the rows of a level that has fewer anchors than are asked for.
MASKRCNN_HOST_DEVICE Proposal no_proposal() { return {{0.f, 0.f, 0.f, 0.f}, kNoCandidate}; }

}  // namespace maskrcnn
