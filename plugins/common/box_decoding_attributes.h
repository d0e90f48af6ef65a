// The attributes of the operators that decode boxes.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "plugins/common/attributes.h"
#include "plugins/common/box_decoding.h"

namespace maskrcnn {

// means and stds: those of the deltas (x, y, width, height); clip: to the image.
inline std::vector<AttributeSpec> box_decoding_attributes() {
  return {optional_floats("means", {0.f, 0.f, 0.f, 0.f}), optional_floats("stds", {1.f, 1.f, 1.f, 1.f}),
          required_float("max_ratio"), optional_int("clip", 1)};
}

inline BoxDecoding box_decoding_from(const Attributes& attributes) {
  BoxDecoding decoding{};
  const std::vector<float> means = attributes.finite_numbers("means", 4);
  const std::vector<float> stds = attributes.finite_numbers("stds", 4);
  std::copy(means.begin(), means.end(), decoding.means);
  std::copy(stds.begin(), stds.end(), decoding.stds);
  decoding.max_ratio = attributes.number("max_ratio", 0.f, std::numeric_limits<float>::max());
  decoding.clip = attributes.flag("clip");
  return decoding;
}

}  // namespace maskrcnn
