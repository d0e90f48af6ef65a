// Box regression, for the host and the device: mmdet's delta2bbox, operation for operation.
#pragma once

#include <cmath>

#include "plugins/common/box.h"
#include "plugins/common/host_device.h"

namespace maskrcnn {

// The score of a candidate that does not exist: below every probability, and not above any threshold of GroupedNMS.
constexpr float kNoCandidate = -1.f;

struct BoxDecoding {
  float means[4];
  float stds[4];
  float max_ratio;  // |log| of the largest change of width and height
  bool clip;        // to the image
};

// NaN stays NaN, as in torch.clamp.
MASKRCNN_HOST_DEVICE float clamp_keeping_nan(float value, float low, float high) {
  const float raised = value < low ? low : value;
  return raised > high ? high : raised;
}

// deltas: [dx, dy, dw, dh]. image_height, image_width: px; not read unless boxes are clipped.
MASKRCNN_HOST_DEVICE Box decode_box(const BoxDecoding& decoding, Box prior, const float (&deltas)[4],
                                    float image_height, float image_width) {
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = unfused_product(deltas[i], decoding.stds[i]) + decoding.means[i];
  const float width = prior.x2 - prior.x1;
  const float height = prior.y2 - prior.y1;
  const float x = (prior.x1 + prior.x2) * 0.5f + unfused_product(width, d[0]);
  const float y = (prior.y1 + prior.y2) * 0.5f + unfused_product(height, d[1]);
  const float half_width = width * expf(clamp_keeping_nan(d[2], -decoding.max_ratio, decoding.max_ratio)) * 0.5f;
  const float half_height = height * expf(clamp_keeping_nan(d[3], -decoding.max_ratio, decoding.max_ratio)) * 0.5f;
  const Box box{x - half_width, y - half_height, x + half_width, y + half_height};
  if (!decoding.clip) return box;
  return {clamp_keeping_nan(box.x1, 0.f, image_width), clamp_keeping_nan(box.y1, 0.f, image_height),
          clamp_keeping_nan(box.x2, 0.f, image_width), clamp_keeping_nan(box.y2, 0.f, image_height)};
}

}  // namespace maskrcnn
