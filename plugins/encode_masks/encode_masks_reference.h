// Masks as COCO's compressed run lengths on the CPU, one pixel after the other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "plugins/common/parallel_for.h"
#include "plugins/encode_masks/encode_masks_math.h"

namespace maskrcnn {

struct EncodeMasksInput {
  const TargetImage* images;  // (batch,)
  const float* masks;         // (batch, max_dets, mask_height, mask_width)
  const float* dets;          // (batch, max_dets, 5)
  const int32_t* num_dets;    // (batch,)
  int64_t batch;
  int64_t max_dets;
  int mask_height;
  int mask_width;
  float threshold;
  float min_score;
};

// Where runs end, as pixels are told of in column-major order. What is not told of has the value before.
class RunEnds {
 public:
  void tell(int64_t position, bool value) {
    if (value != value_) ends_.push_back(static_cast<int32_t>(position));
    value_ = value;
  }

  // Ends the last run after `num_pixels`; the string.
  std::string encoded(int64_t num_pixels) {
    ends_.push_back(static_cast<int32_t>(num_pixels));
    std::string out;
    uint8_t bytes[kMaxRunBytes];
    for (size_t i = kBefore; i < ends_.size(); ++i) {
      const int count = write_run(run_entry(static_cast<int64_t>(i) - kBefore, &ends_[i]), bytes);
      out.append(bytes, bytes + count);
    }
    return out;
  }

 private:
  static constexpr int kBefore = 3;  // ends that run_entry reads before a run's own
  std::vector<int32_t> ends_ = std::vector<int32_t>(kBefore, 0);
  bool value_ = false;
};

inline std::string encode_mask(const EncodeMasksInput& in, const float* mask, const PasteBox& box,
                               const TargetImage& image) {
  RunEnds runs;
  const int64_t height = image.height;
  for (int px = box.columns.begin; px < box.columns.end; ++px) {
    const CellPosition x = cell_position(mask_position(px, box.x1, box.x2, in.mask_width), in.mask_width);
    const auto row_value = [&](int row) { return mask_row_at(mask, in.mask_height, in.mask_width, row, x); };
    if (box.rows.begin > 0) runs.tell(px * height, false);
    for (int py = box.rows.begin; py < box.rows.end; ++py) {
      const CellPosition y = cell_position(mask_position(py, box.y1, box.y2, in.mask_height), in.mask_height);
      const float probability = interpolated(row_value(y.low), row_value(y.low + 1), y.weight);
      runs.tell(px * height + py, probability >= in.threshold);
    }
    if (box.rows.end < height) runs.tell(px * height + box.rows.end, false);
  }
  if (box.columns.end < image.width) runs.tell(box.columns.end * height, false);
  return runs.encoded(height * image.width);
}

// strings: (batch, max_dets); empty past num_dets and below min_score, which no mask's string is.
inline std::vector<std::string> encode_masks(const EncodeMasksInput& in) {
  std::vector<std::string> strings(in.batch * in.max_dets);
  parallel_for(in.batch * in.max_dets, [&](int64_t index) {
    const int64_t image = index / in.max_dets;
    const float* det = in.dets + index * 5;
    if (index % in.max_dets >= in.num_dets[image] || !(det[4] >= in.min_score)) return;
    const float* mask = in.masks + index * in.mask_height * in.mask_width;
    strings[index] = encode_mask(in, mask, paste_box(det, in.images[image]), in.images[image]);
  });
  return strings;
}

}  // namespace maskrcnn
