// The network's output -> Detections in px of the original images: runtime/host/postprocess.py.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "prepare.h"

namespace maskrcnn {

// What the graph returns, on the host, for a batch or more; rows of metadata.info.max_detections.
struct Outputs {
  const std::int32_t* num_dets = nullptr;  // (B,)
  const float* dets = nullptr;             // (B, K, 5)
  const std::int32_t* labels = nullptr;    // (B, K)
  const float* keypoints = nullptr;        // (B, K, P, 3), or null
  // (B, K, cells.height, cells.width), one of the two, or none.
  const float* probabilities = nullptr;
  const std::uint8_t* pixels = nullptr;
  Size cells{};
  // COCO's strings, (B, K), where the device has made them.
  const std::vector<std::string>* counts = nullptr;
};

// kFailed: what no valid model returns (NaN, a label without a class).
std::vector<Detections> detections_from(const Outputs& outputs, const Geometry& geometry,
                                        const std::shared_ptr<const Metadata>& metadata, float min_score);

// Refuses an output of another shape: kFailed. `shape` is what is expected, with kFree for any.
void check_shape(const std::string& name, const std::vector<std::int64_t>& expected,
                 const std::vector<std::int64_t>& found);

}  // namespace maskrcnn
