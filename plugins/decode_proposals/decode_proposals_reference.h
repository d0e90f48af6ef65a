// The best anchors of every level as boxes, on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "plugins/common/parallel_for.h"
#include "plugins/decode_proposals/decode_proposals_math.h"
#include "plugins/select_top/select_top_math.h"

namespace maskrcnn {

struct ReferenceProposalLevel {
  const float* logits;  // (batch, num_anchors, height, width), in the layout
  const float* deltas;  // (batch, num_anchors * 4, height, width), in the layout
  int64_t height;
  int64_t width;
  int64_t top;
  int64_t first_prior;  // the level's place among all anchors
  int64_t first_row;    // and in the result
};

struct DecodeProposalsInput {
  std::vector<ReferenceProposalLevel> levels;
  int64_t batch;
  int64_t num_anchors;  // of each pixel; fewer than 2^32 of a level
  TensorLayout layout;
  const float* priors;       // (N, 4)
  const float* image_sizes;  // (batch, 2)
  BoxDecoding decoding;
  float min_size;
};

inline void decode_level(const DecodeProposalsInput& in, const ReferenceProposalLevel& level, int64_t image,
                         float* boxes, float* scores) {
  const Strides of_logits = strides_of(in.num_anchors, level.height, level.width, in.layout);
  const Strides of_deltas = strides_of(in.num_anchors * kDeltas, level.height, level.width, in.layout);
  const float* logits = level.logits + image * of_logits.image;
  const float* deltas = level.deltas + image * of_deltas.image;
  const auto place_of = [&](uint32_t index) { return anchor_place(index, static_cast<uint32_t>(in.num_anchors)); };
  const int64_t count = in.num_anchors * level.height * level.width;

  std::vector<float> values(count);
  std::vector<uint64_t> entries(count);
  for (int64_t i = 0; i < count; ++i) {
    const auto index = static_cast<uint32_t>(i);
    values[i] = objectness(logits[logit_offset(of_logits, place_of(index))]);
    entries[i] = ranked_entry(descending_key(values[i]), index);
  }
  const int64_t num_taken = std::min(level.top, count);
  std::partial_sort(entries.begin(), entries.begin() + num_taken, entries.end());

  for (int64_t row = 0; row < level.top; ++row) {
    Proposal proposal = no_proposal();
    if (row < num_taken) {
      const uint32_t index = index_of(entries[row]);
      const AnchorPlace place = place_of(index);
      const float* prior = in.priors + (level.first_prior + index) * 4;
      float own[kDeltas];
      for (int i = 0; i < kDeltas; ++i) own[i] = deltas[delta_offset(of_deltas, place, i)];
      proposal = decode_proposal(in.decoding, in.min_size, {prior[0], prior[1], prior[2], prior[3]}, own,
                                 values[index], in.image_sizes[image * 2], in.image_sizes[image * 2 + 1]);
    }
    const Box& box = proposal.box;
    boxes[row * 4] = box.x1;
    boxes[row * 4 + 1] = box.y1;
    boxes[row * 4 + 2] = box.x2;
    boxes[row * 4 + 3] = box.y2;
    scores[row] = proposal.score;
  }
}

// boxes: (batch, M, 4), scores: (batch, M), M the sum of the levels' top.
inline void decode_proposals(const DecodeProposalsInput& in, float* boxes, float* scores) {
  const auto num_levels = static_cast<int64_t>(in.levels.size());
  const int64_t num_rows = in.levels.back().first_row + in.levels.back().top;
  parallel_for(in.batch * num_levels, [&](int64_t task) {
    const int64_t image = task / num_levels;
    const ReferenceProposalLevel& level = in.levels[task % num_levels];
    const int64_t first = image * num_rows + level.first_row;
    decode_level(in, level, image, boxes + first * 4, scores + first);
  });
}

}  // namespace maskrcnn
