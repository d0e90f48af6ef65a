// BoxDecoding from Python arguments.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "plugins/common/box_decoding.h"
#include "plugins/common/numpy_arrays.h"

namespace maskrcnn {

inline BoxDecoding checked_decoding(const std::vector<float>& means, const std::vector<float>& stds, float max_ratio,
                                    bool clip) {
  check(means.size() == 4 && stds.size() == 4, "means, stds: expected 4 numbers each, found " +
                                                   std::to_string(means.size()) + " and " +
                                                   std::to_string(stds.size()));
  check(max_ratio >= 0.f && std::isfinite(max_ratio),
        "max_ratio: expected a finite number of at least 0, found " + std::to_string(max_ratio));
  BoxDecoding decoding{};
  std::copy(means.begin(), means.end(), decoding.means);
  std::copy(stds.begin(), stds.end(), decoding.stds);
  decoding.max_ratio = max_ratio;
  decoding.clip = clip;
  return decoding;
}

}  // namespace maskrcnn
