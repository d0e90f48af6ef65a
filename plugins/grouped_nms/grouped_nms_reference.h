// Non-maximum suppression on the CPU: the loops around grouped_nms_math.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "plugins/common/parallel_for.h"
#include "plugins/grouped_nms/grouped_nms_math.h"

namespace maskrcnn {

inline void sort_by_rank(const float* scores, std::vector<int64_t>& indices) {
  std::sort(indices.begin(), indices.end(),
            [scores](int64_t a, int64_t b) { return ranks_before(scores[a], a, scores[b], b); });
}

// boxes: (num_boxes, 4), scores: (num_boxes,). Returns the indices of the kept boxes, best first.
inline std::vector<int64_t> nms(const float* boxes, const float* scores, int64_t num_boxes, float iou_threshold,
                                float offset) {
  std::vector<int64_t> order(num_boxes);
  for (int64_t i = 0; i < num_boxes; ++i) order[i] = i;
  sort_by_rank(scores, order);
  std::vector<Box> sorted(num_boxes);
  for (int64_t i = 0; i < num_boxes; ++i) sorted[i] = load_box(boxes + 4 * order[i]);
  std::vector<char> removed(num_boxes, 0);
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < num_boxes; ++i) {
    if (removed[i]) continue;
    kept.push_back(order[i]);
    for (int64_t j = i + 1; j < num_boxes; ++j) {
      if (!removed[j]) removed[j] = suppresses(sorted[i], sorted[j], iou_threshold, offset);
    }
  }
  return kept;
}

struct GroupedNmsInput {
  const float* boxes;     // (batch, num_boxes, 4)
  const float* scores;    // (batch, num_boxes)
  const int32_t* groups;  // (batch, num_boxes)
  int64_t num_boxes;
  float iou_threshold;
  float score_threshold;
  int64_t max_output;
};

// One image. indices: (max_output,), filled with -1 beforehand. Returns how many were written.
inline int32_t grouped_nms_image(const GroupedNmsInput& in, int64_t image, int32_t* indices) {
  const float* boxes = in.boxes + image * in.num_boxes * 4;
  const float* scores = in.scores + image * in.num_boxes;
  const int32_t* groups = in.groups + image * in.num_boxes;
  std::vector<int64_t> order;
  for (int64_t i = 0; i < in.num_boxes; ++i) {
    if (scores[i] > in.score_threshold) order.push_back(i);
  }
  sort_by_rank(scores, order);
  // Greedy NMS looks only at boxes kept so far, so that the walk may stop as soon as the output is full.
  std::unordered_map<int32_t, std::vector<Box>> kept_of_group;
  int32_t count = 0;
  for (const int64_t index : order) {
    if (count >= in.max_output) break;
    const Box box = load_box(boxes + 4 * index);
    std::vector<Box>& kept = kept_of_group[groups[index]];
    const bool removed = std::any_of(kept.begin(), kept.end(),
                                     [&](const Box& other) { return suppresses(other, box, in.iou_threshold, 0.f); });
    if (removed) continue;
    kept.push_back(box);
    indices[count++] = static_cast<int32_t>(index);
  }
  return count;
}

// indices: (batch, max_output), counts: (batch,).
inline void grouped_nms(const GroupedNmsInput& in, int64_t batch, int32_t* indices, int32_t* counts) {
  std::fill(indices, indices + batch * in.max_output, -1);
  parallel_for(batch,
               [&](int64_t image) { counts[image] = grouped_nms_image(in, image, indices + image * in.max_output); });
}

}  // namespace maskrcnn
