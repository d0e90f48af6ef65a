// Masks in the original image, from what the network puts out: runtime/host/postprocess.py and grid_masks.py.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "metadata.h"

namespace maskrcnn {

// Where the masks of one image come from. Made once, then only read.
struct Internals {
  std::shared_ptr<const Metadata> metadata;
  Size image{};
  std::vector<Box> boxes;  // px of the image; the masks are in their order
  // Of the network: crop and grid have probabilities, full has pixels; rows of cell_width cells.
  std::vector<float> probabilities;
  std::vector<std::uint8_t> pixels;
  Size cells{};
  // Of mode grid: where the image lies in the network's input.
  Point scale{1, 1};
  Point offset{0, 0};
  Size padded{};
  // COCO's strings, where the device has made them.
  bool has_counts = false;
  std::vector<std::string> counts;

  static void attach(Detections& detections, std::shared_ptr<const Internals> internals) {
    detections.internals_ = std::move(internals);
  }
};

// kFailed: the model has no masks; kInvalid: there is no such detection.
void check_mask(const Internals* internals, std::size_t index);

Mask mask_of(const Internals& internals, std::size_t index);
std::string counts_of(const Internals& internals, std::size_t index);

// Of the whole image: what pycocotools' encode makes of it.
std::string counts_from_mask(const Mask& mask, const Size& image);
// kFailed: they are none.
Mask mask_from_counts(const std::string& counts, const Size& image);

}  // namespace maskrcnn
