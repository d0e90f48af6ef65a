// The best anchors of every level as boxes, on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "plugins/common/box.h"
#include "plugins/common/parallel_for.h"
#include "plugins/common/sigmoid.h"
#include "plugins/decode_proposals/decode_proposals_math.h"
#include "plugins/select_top/select_top_math.h"

namespace maskrcnn {

struct ReferenceProposalLevel {
  const float* logits;  // (batch, num_anchors, height, width), in the layout
  const float* deltas;  // (batch, num_anchors * 4, height, width), in the layout
  int64_t height;
  int64_t width;
  int64_t top;
  int64_t first_prior;  // the level's place among all priors
  int64_t first_row;    // and in the result
  float stride_x;       // see LevelPriors
  float stride_y;
};

struct DecodeProposalsInput {
  std::vector<ReferenceProposalLevel> levels;
  int64_t batch;
  int64_t num_anchors;  // of each pixel; fewer than 2^32 of a level
  TensorLayout layout;
  const float* priors;       // (N, 4), N as in DecodeProposalsArguments
  const float* image_sizes;  // (batch, 2)
  BoxDecoding decoding;
  float min_size;
};

struct RankedScores {
  std::vector<float> scores;      // of every anchor of a level
  std::vector<uint64_t> entries;  // the first num_taken are sorted
  int64_t num_taken;
};

inline AnchorPlace place_of(const DecodeProposalsInput& in, uint32_t index) {
  return anchor_place(index, static_cast<uint32_t>(in.num_anchors));
}

inline RankedScores rank_anchors(const DecodeProposalsInput& in, const ReferenceProposalLevel& level, int64_t image) {
  const Strides strides = strides_of(in.num_anchors, level.height, level.width, in.layout);
  const float* logits = level.logits + image * strides.image;
  const int64_t count = in.num_anchors * level.height * level.width;
  RankedScores ranked{std::vector<float>(count), std::vector<uint64_t>(count), std::min(level.top, count)};
  for (int64_t i = 0; i < count; ++i) {
    const auto index = static_cast<uint32_t>(i);
    ranked.scores[i] = sigmoid(logits[logit_offset(strides, place_of(in, index))]);
    ranked.entries[i] = ranked_entry(descending_key(ranked.scores[i]), index);
  }
  std::partial_sort(ranked.entries.begin(), ranked.entries.begin() + ranked.num_taken, ranked.entries.end());
  return ranked;
}

// Writes the level's rows of one image.
inline void decode_level(const DecodeProposalsInput& in, const ReferenceProposalLevel& level, int64_t image,
                         float* boxes, float* scores) {
  const RankedScores ranked = rank_anchors(in, level, image);
  const Strides strides = strides_of(in.num_anchors * kDeltas, level.height, level.width, in.layout);
  const float* map = level.deltas + image * strides.image;
  const float* size = in.image_sizes + image * 2;
  const LevelPriors priors{in.priors + level.first_prior * 4, level.stride_x, level.stride_y};
  const auto width = static_cast<uint32_t>(level.width);
  for (int64_t row = 0; row < level.top; ++row) {
    Proposal proposal = no_proposal();
    if (row < ranked.num_taken) {
      const uint32_t index = index_of(ranked.entries[row]);
      const AnchorPlace place = place_of(in, index);
      float deltas[kDeltas];
      for (int i = 0; i < kDeltas; ++i) deltas[i] = map[delta_offset(strides, place, i)];
      proposal = decode_proposal(in.decoding, in.min_size, load_prior(priors, index, place, width), deltas,
                                 ranked.scores[index], size[0], size[1]);
    }
    store_box(proposal.box, boxes + row * 4);
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
