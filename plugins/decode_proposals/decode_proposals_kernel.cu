// DecodeProposals on the GPU. One launch turns the logits of all levels and images into scores, in the anchors' order;
// the tournament of SelectTop, a launch per round for all of them, leaves the best of each level; the last round sorts
// those, gathers their deltas where the convolution wrote them, decodes and writes. Four launches for an image of 800 x
// 1216 px.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <climits>

#include "plugins/common/box.h"
#include "plugins/common/sigmoid.h"
#include "plugins/common/strides.h"
#include "plugins/decode_proposals/decode_proposals_kernel.h"
#include "plugins/decode_proposals/decode_proposals_math.h"
#include "plugins/select_top/select_top_kernel.h"
#include "plugins/select_top/select_top_math.h"
#include "plugins/select_top/select_top_tournament.h"

namespace maskrcnn {
namespace {

using namespace tournament;

using Arguments = DecodeProposalsArguments;
constexpr int kMaxLevels = kDecodeProposalsMaxLevels;

constexpr int kScoreThreads = 256;
constexpr int kScoresPerThread = 4;  // loads in flight
constexpr int kScoresPerBlock = kScoreThreads * kScoresPerThread;

__device__ float to_float(float value) { return value; }
__device__ float to_float(__half value) { return __half2float(value); }

// Blocks first_block, first_block + 1, ... of a launch work on a level. Those of no level begin past every block.
constexpr int kNoBlock = INT_MAX;

template <typename Level>
__device__ Level own_level(const Level (&levels)[kMaxLevels]) {
  // Indexing the kernel's parameters with a run-time number would copy them to local memory.
  Level own = levels[0];
#pragma unroll
  for (int i = 1; i < kMaxLevels; ++i) {
    if (static_cast<int>(blockIdx.x) >= levels[i].first_block) own = levels[i];
  }
  return own;
}

struct ScoreLevel {
  int first_block = kNoBlock;
  const void* logits;
  Strides strides;
  int32_t count;  // anchors
  float* scores;  // (batch, count)
};

struct ScoreLevels {
  ScoreLevel levels[kMaxLevels];
  int32_t batch;
  uint32_t num_anchors;
};

// Block x, y: anchors of a level, every gridDim.y-th image.
template <typename T>
__global__ void __launch_bounds__(kScoreThreads) compute_scores(const __grid_constant__ ScoreLevels in) {
  const ScoreLevel level = own_level(in.levels);
  const int block = static_cast<int>(blockIdx.x) - level.first_block;
  const int first = block * kScoresPerBlock + static_cast<int>(threadIdx.x);
  for (int64_t b = blockIdx.y; b < in.batch; b += gridDim.y) {
    const T* logits = static_cast<const T*>(level.logits) + b * level.strides.image;
    float* scores = level.scores + b * level.count;
    T values[kScoresPerThread];
#pragma unroll
    for (int i = 0; i < kScoresPerThread; ++i) {
      const int index = first + i * kScoreThreads;
      if (index < level.count) values[i] = logits[logit_offset(level.strides, anchor_place(index, in.num_anchors))];
    }
#pragma unroll
    for (int i = 0; i < kScoresPerThread; ++i) {
      const int index = first + i * kScoreThreads;
      if (index < level.count) scores[index] = sigmoid(to_float(values[i]));
    }
  }
}

struct ChunkLevel {
  int first_block = kNoBlock;
  Round round;
};

struct ChunkLevels {
  ChunkLevel levels[kMaxLevels];
};

// Block x, y: a chunk of a level, every gridDim.y-th image.
template <typename Source>
__global__ void __launch_bounds__(kThreads) select_level_chunks(const __grid_constant__ ChunkLevels in) {
  __shared__ SelectShared shared;
  const ChunkLevel level = own_level(in.levels);
  const int64_t chunk = static_cast<int>(blockIdx.x) - level.first_block;
  for (int64_t b = blockIdx.y; b < level.round.batch; b += gridDim.y) {
    select_chunk<Source>(shared, level.round, b, chunk);
  }
}

struct ResultLevel {
  int first_block = kNoBlock;
  bool has_entries;  // after a round; otherwise the last one reads scores
  Round last;
  const float* scores;  // (batch, count)
  int32_t count;        // anchors
  const void* deltas;
  Strides strides;
  int32_t top;
  LevelPriors priors;
  uint32_t width;
  int64_t first_row;  // the level's place in the result
};

struct ResultLevels {
  ResultLevel levels[kMaxLevels];
  int32_t batch;
  uint32_t num_anchors;
  const float* image_sizes;
  BoxDecoding decoding;
  float min_size;
  int64_t num_rows;  // of an image
  float* boxes;
  float* scores;
};

template <typename T>
__device__ Proposal load_proposal(const ResultLevels& in, const ResultLevel& level, int64_t image, uint32_t index) {
  const AnchorPlace place = anchor_place(index, in.num_anchors);
  const T* map = static_cast<const T*>(level.deltas) + image * level.strides.image;
  float deltas[kDeltas];
#pragma unroll
  for (int i = 0; i < kDeltas; ++i) deltas[i] = to_float(map[delta_offset(level.strides, place, i)]);
  return decode_proposal(in.decoding, in.min_size, load_prior(level.priors, index, place, level.width), deltas,
                         level.scores[image * level.count + index], in.image_sizes[image * 2],
                         in.image_sizes[image * 2 + 1]);
}

// Block x, y: level x, every gridDim.y-th image.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1) write_proposals(const __grid_constant__ ResultLevels in) {
  __shared__ SelectShared shared;
  __shared__ uint64_t best[kSelectTopMaxK];
  const ResultLevel level = own_level(in.levels);
  for (int64_t b = blockIdx.y; b < in.batch; b += gridDim.y) {
    if (level.has_entries) {
      select_sorted<EntrySource>(shared, best, level.last, b);
    } else {
      select_sorted<ScoreSource>(shared, best, level.last, b);
    }
    for (int i = threadIdx.x; i < level.top; i += kThreads) {
      const bool exists = i < level.last.k;
      const Proposal found = exists ? load_proposal<T>(in, level, b, index_of(best[i])) : no_proposal();
      const int64_t row = b * in.num_rows + level.first_row + i;
      store_box(found.box, in.boxes + row * 4);
      in.scores[row] = found.score;
    }
  }
}

bool has_strides(const ProposalLevel& level) { return level.stride_x > 0.f; }

int64_t num_anchors_of(const Arguments& in, const ProposalLevel& level) {
  return static_cast<int64_t>(level.height) * level.width * in.num_anchors;
}

// How many of the level's anchors go on: all of them where there are fewer than rows.
int32_t num_taken(const Arguments& in, const ProposalLevel& level) {
  const int64_t count = num_anchors_of(in, level);
  return count < level.top ? static_cast<int32_t>(count) : level.top;
}

bool is_valid(const Arguments& in, const ProposalLevel& level) {
  if (level.height < 1 || level.width < 1 || level.top < 1 || level.top > kSelectTopMaxK) return false;
  const bool has_none = level.stride_x == 0.f && level.stride_y == 0.f;
  if (!has_none && !(level.stride_x > 0.f && level.stride_y > 0.f)) return false;
  const int64_t pixels = static_cast<int64_t>(level.height) * level.width;
  return pixels <= kSelectTopMaxScores / in.num_anchors;
}

bool is_valid(const Arguments& in) {
  if (in.num_levels < 1 || in.num_levels > kMaxLevels || in.batch < 0 || in.num_anchors < 1) return false;
  for (int i = 0; i < in.num_levels; ++i) {
    if (!is_valid(in, in.levels[i])) return false;
  }
  return in.map_type == ElementType::kFloat || in.map_type == ElementType::kHalf;
}

size_t scores_size(const Arguments& in, const ProposalLevel& level) {
  return aligned(static_cast<size_t>(in.batch) * sizeof(float) * static_cast<size_t>(num_anchors_of(in, level)));
}

size_t level_survivors_size(const Arguments& in, const ProposalLevel& level) {
  return survivors_size(in.batch, num_anchors_of(in, level), num_taken(in, level));
}

unsigned images_of_grid(const Arguments& in) {
  return static_cast<unsigned>(in.batch < kMaxGridY ? in.batch : kMaxGridY);
}

// A level's part of the workspace, and its tournament.
struct LevelWork {
  float* scores;
  Rounds rounds;
};

void lay_out(const Arguments& in, void* workspace, LevelWork (&work)[kMaxLevels]) {
  char* next = static_cast<char*>(workspace);
  for (int i = 0; i < in.num_levels; ++i) {
    const ProposalLevel& level = in.levels[i];
    work[i].scores = reinterpret_cast<float*>(next);
    next += scores_size(in, level);
    work[i].rounds = rounds_of(work[i].scores, in.batch, static_cast<int32_t>(num_anchors_of(in, level)),
                               num_taken(in, level), next);
    next += level_survivors_size(in, level);
  }
}

template <typename T>
void launch_scores(const Arguments& in, const LevelWork (&work)[kMaxLevels], cudaStream_t stream) {
  ScoreLevels launch{};
  launch.batch = in.batch;
  launch.num_anchors = static_cast<uint32_t>(in.num_anchors);
  int num_blocks = 0;
  for (int i = 0; i < in.num_levels; ++i) {
    const ProposalLevel& level = in.levels[i];
    const auto count = static_cast<int32_t>(num_anchors_of(in, level));
    launch.levels[i] = {num_blocks, level.logits,
                        strides_of(in.num_anchors, level.height, level.width, in.map_layout), count, work[i].scores};
    num_blocks += (count + kScoresPerBlock - 1) / kScoresPerBlock;
  }
  const dim3 grid(static_cast<unsigned>(num_blocks), images_of_grid(in));
  compute_scores<T><<<grid, kScoreThreads, 0, stream>>>(launch);
}

// One round of every level that is not down to one chunk. Returns false where there is none.
template <typename Source>
bool launch_round(const Arguments& in, LevelWork (&work)[kMaxLevels], cudaStream_t stream) {
  ChunkLevels launch{};
  int num_launched = 0;
  int num_blocks = 0;
  for (int i = 0; i < in.num_levels; ++i) {
    Rounds& rounds = work[i].rounds;
    if (!start_round(rounds)) continue;
    launch.levels[num_launched++] = {num_blocks, rounds.next};
    num_blocks += static_cast<int>(chunks_of(rounds.next.count, rounds.next.chunk));
    finish_round(rounds);
  }
  if (num_launched == 0) return false;
  const dim3 grid(static_cast<unsigned>(num_blocks), images_of_grid(in));
  select_level_chunks<Source><<<grid, kThreads, 0, stream>>>(launch);
  return true;
}

template <typename T>
void launch_results(const Arguments& in, const LevelWork (&work)[kMaxLevels], cudaStream_t stream) {
  ResultLevels launch{};
  int64_t first_prior = 0;
  int64_t first_row = 0;
  for (int i = 0; i < in.num_levels; ++i) {
    const ProposalLevel& level = in.levels[i];
    const Rounds& rounds = work[i].rounds;
    ResultLevel& to = launch.levels[i];
    to.first_block = i;
    to.has_entries = rounds.num_done > 0;
    to.last = rounds.next;
    to.scores = work[i].scores;
    to.count = static_cast<int32_t>(num_anchors_of(in, level));
    to.deltas = level.deltas;
    to.strides = strides_of(static_cast<int64_t>(in.num_anchors) * kDeltas, level.height, level.width, in.map_layout);
    to.top = level.top;
    to.priors = {in.priors + first_prior * 4, level.stride_x, level.stride_y};
    to.width = static_cast<uint32_t>(level.width);
    to.first_row = first_row;
    first_prior += has_strides(level) ? in.num_anchors : to.count;
    first_row += to.top;
  }
  launch.batch = in.batch;
  launch.num_anchors = static_cast<uint32_t>(in.num_anchors);
  launch.image_sizes = in.image_sizes;
  launch.decoding = in.decoding;
  launch.min_size = in.min_size;
  launch.num_rows = first_row;
  launch.boxes = in.boxes;
  launch.scores = in.scores;
  const dim3 grid(static_cast<unsigned>(in.num_levels), images_of_grid(in));
  write_proposals<T><<<grid, kThreads, 0, stream>>>(launch);
}

template <typename T>
void launch_typed(const Arguments& in, LevelWork (&work)[kMaxLevels], cudaStream_t stream) {
  launch_scores<T>(in, work, stream);
  if (launch_round<ScoreSource>(in, work, stream)) {
    while (launch_round<EntrySource>(in, work, stream)) continue;
  }
  launch_results<T>(in, work, stream);
}

}  // namespace

size_t decode_proposals_workspace_size(const Arguments& in) {
  if (!is_valid(in)) return 0;
  size_t size = 0;
  for (int i = 0; i < in.num_levels; ++i) {
    size += scores_size(in, in.levels[i]) + level_survivors_size(in, in.levels[i]);
  }
  return size;
}

cudaError_t launch_decode_proposals(const Arguments& in, void* workspace, size_t workspace_size, cudaStream_t stream) {
  if (!is_valid(in)) return cudaErrorInvalidValue;
  if (in.batch == 0) return cudaSuccess;
  if (workspace == nullptr || workspace_size < decode_proposals_workspace_size(in)) return cudaErrorInvalidValue;
  LevelWork work[kMaxLevels]{};
  lay_out(in, workspace, work);
  if (in.map_type == ElementType::kHalf) {
    launch_typed<__half>(in, work, stream);
  } else {
    launch_typed<float>(in, work, stream);
  }
  return cudaGetLastError();
}

}  // namespace maskrcnn
