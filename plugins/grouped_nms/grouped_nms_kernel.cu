// GroupedNMS on the GPU: five launches whose sizes depend on shapes only.
//
//   collect   candidates of each image, in any order
//   rank      by brute force: how many candidates come before this one, over all groups and within the sorted groups.
//             Quadratic, but without any dependency between threads: 4800 candidates take microseconds
//   scatter   boxes into group-major order, best first within a group
//   suppress  one block per group walks its boxes in tiles: against the boxes kept so far, then among themselves
//   output    kept boxes by rank
#include <cuda_runtime.h>

#include "plugins/grouped_nms/grouped_nms_kernel.h"
#include "plugins/grouped_nms/grouped_nms_math.h"

namespace maskrcnn {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr size_t kAlignment = 256;
constexpr int kMaxGridY = 65535;

constexpr int kCollectThreads = 256;

constexpr int kRankThreads = 256;
constexpr int kRankPerThread = 2;
constexpr int kRankRows = kRankThreads * kRankPerThread;
constexpr int kRankColumns = 128;
constexpr int kRankMaxBlocks = 512;  // per image: fills the largest GPUs at batch 1

constexpr int kSuppressThreads = 1024;
constexpr int kSuppressWarps = kSuppressThreads / kWarp;
constexpr int kSuppressMaxBlocks = 128;  // per image
constexpr int kTile = 512;
constexpr int kTileWords = kTile / kWarp;
constexpr int kMaskStride = kTileWords + 1;  // odd, so that a column of words meets every bank

constexpr int kOutputThreads = 1024;
constexpr int kOutputWarps = kOutputThreads / kWarp;

// Cleared before every run.
struct ImageState {
  int num_candidates;
  int largest_bits;       // of the largest coordinate, at least 0: as an int, such floats keep their order
  int minus_lowest_bits;  // of minus the lowest coordinate, at least 0
  int padding;
};

// Pointers into the workspace. Arrays of one element per box unless noted; "slot": place in group-major order.
struct Workspace {
  ImageState* images;      // (batch,)
  uint32_t* kept;          // (batch, kept_words): bit per rank
  uint64_t* keys;          // of candidates: sorting them upwards sorts by descending score, then index
  int32_t* groups;         // of candidates
  int32_t* ranks;          // of candidates
  int32_t* slots;          // of candidates
  int32_t* index_of_rank;  // in the input
  float4* slot_boxes;      // in turn overwritten by the boxes kept, from each group's first slot on
  int32_t* slot_groups;
  int32_t* slot_ranks;
  int32_t kept_words;
  size_t cleared_bytes;  // images and kept
  size_t size;
};

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

template <typename T>
void take(T*& pointer, char* base, size_t& offset, size_t count) {
  pointer = reinterpret_cast<T*>(base + offset);
  offset += aligned(count * sizeof(T));
}

Workspace partition(void* memory, int32_t batch, int32_t num_boxes) {
  Workspace out{};
  out.kept_words = static_cast<int32_t>((static_cast<int64_t>(num_boxes) + kWarp - 1) / kWarp);
  const size_t images = batch;
  const size_t boxes = images * num_boxes;
  char* base = static_cast<char*>(memory);
  size_t offset = 0;
  take(out.images, base, offset, images);
  take(out.kept, base, offset, images * out.kept_words);
  out.cleared_bytes = offset;
  take(out.keys, base, offset, boxes);
  take(out.groups, base, offset, boxes);
  take(out.ranks, base, offset, boxes);
  take(out.slots, base, offset, boxes);
  take(out.index_of_rank, base, offset, boxes);
  take(out.slot_boxes, base, offset, boxes);
  take(out.slot_groups, base, offset, boxes);
  take(out.slot_ranks, base, offset, boxes);
  out.size = offset;
  return out;
}

// Not NaN. Zero has one key, whatever its sign: equal scores are ordered by index.
__device__ uint64_t sort_key(float score, uint32_t index) {
  const uint32_t bits = __float_as_uint(score + 0.f);
  const uint32_t ascending = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~ascending) << 32 | index;
}

__device__ uint32_t index_of_key(uint64_t key) { return static_cast<uint32_t>(key); }

__device__ float4 load_box4(const float* boxes, int64_t index) {
  return __ldg(reinterpret_cast<const float4*>(boxes) + index);
}

// Sums `value` over the warps' lanes before this one. All threads of the block call it. totals: one int per warp.
__device__ int exclusive_block_sum(int value, int* totals, int num_warps, int& block_total) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  int inclusive = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  if (lane == kWarp - 1) totals[warp] = inclusive;
  __syncthreads();
  int before = 0;
  block_total = 0;
  for (int w = 0; w < num_warps; ++w) {
    if (w == warp) before = block_total;
    block_total += totals[w];
  }
  __syncthreads();
  return before + inclusive - value;
}

// The whole warp calls it; a lane without a candidate brings zeros.
__device__ void widen_extent(ImageState& image, const float4& box) {
  // fmaxf drops NaN, so that one bad box does not cost the others their order.
  float largest = fmaxf(fmaxf(fmaxf(box.x, box.y), fmaxf(box.z, box.w)), 0.f);
  float minus_lowest = fmaxf(fmaxf(fmaxf(-box.x, -box.y), fmaxf(-box.z, -box.w)), 0.f);
  for (int step = kWarp / 2; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
    minus_lowest = fmaxf(minus_lowest, __shfl_xor_sync(kAllLanes, minus_lowest, step));
  }
  if (threadIdx.x % kWarp != 0) return;
  if (largest > 0.f) atomicMax(&image.largest_bits, __float_as_int(largest));
  if (minus_lowest > 0.f) atomicMax(&image.minus_lowest_bits, __float_as_int(minus_lowest));
}

__global__ void collect_candidates(GroupedNmsArguments in, Workspace work) {
  __shared__ int totals[kCollectThreads / kWarp];
  __shared__ int block_begin;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kCollectThreads + threadIdx.x;
  for (int64_t b = blockIdx.y; b < in.batch; b += gridDim.y) {
    const int64_t image_begin = b * in.num_boxes;
    const float score = index < in.num_boxes ? in.scores[image_begin + index] : NAN;
    const bool candidate = score > in.score_threshold;  // false for NaN
    int block_total;
    const int place = exclusive_block_sum(candidate, totals, kCollectThreads / kWarp, block_total);
    if (block_total == 0) continue;
    ImageState& image = work.images[b];
    if (threadIdx.x == 0) block_begin = atomicAdd(&image.num_candidates, block_total);
    __syncthreads();
    if (in.shift_groups) {
      widen_extent(image, candidate ? load_box4(in.boxes, image_begin + index) : make_float4(0.f, 0.f, 0.f, 0.f));
    }
    if (!candidate) continue;
    const int64_t at = image_begin + block_begin + place;
    const int64_t groups_begin = in.groups_batch == 1 ? 0 : image_begin;
    work.keys[at] = sort_key(score, static_cast<uint32_t>(index));
    work.groups[at] = in.groups[groups_begin + index];
    work.ranks[at] = 0;
    work.slots[at] = 0;
  }
}

__global__ void rank_candidates(GroupedNmsArguments in, Workspace work) {
  __shared__ uint64_t other_keys[kRankColumns];
  __shared__ int32_t other_groups[kRankColumns];
  for (int64_t b = blockIdx.y; b < in.batch; b += gridDim.y) {
    const int64_t begin = b * in.num_boxes;
    const int count = work.images[b].num_candidates;
    const int64_t row_tiles = (static_cast<int64_t>(count) + kRankRows - 1) / kRankRows;
    const int64_t column_tiles = (static_cast<int64_t>(count) + kRankColumns - 1) / kRankColumns;
    for (int64_t item = blockIdx.x; item < row_tiles * column_tiles; item += gridDim.x) {
      const int64_t column = item / row_tiles * kRankColumns;
      const int columns = static_cast<int>(min(static_cast<int64_t>(kRankColumns), count - column));
      __syncthreads();
      if (threadIdx.x < columns) {
        other_keys[threadIdx.x] = work.keys[begin + column + threadIdx.x];
        other_groups[threadIdx.x] = work.groups[begin + column + threadIdx.x];
      }
      __syncthreads();
      uint64_t key[kRankPerThread];
      int32_t group[kRankPerThread];
      int rank[kRankPerThread] = {};
      int slot[kRankPerThread] = {};
      const int64_t row = item % row_tiles * kRankRows + threadIdx.x;
#pragma unroll
      for (int k = 0; k < kRankPerThread; ++k) {
        const int64_t own = row + k * kRankThreads;
        key[k] = own < count ? work.keys[begin + own] : 0;
        group[k] = own < count ? work.groups[begin + own] : 0;
      }
#pragma unroll 4
      for (int j = 0; j < columns; ++j) {
        const uint64_t other_key = other_keys[j];
        const int32_t other_group = other_groups[j];
#pragma unroll
        for (int k = 0; k < kRankPerThread; ++k) {
          const bool before = other_key < key[k];
          rank[k] += before;
          slot[k] += other_group < group[k] || (other_group == group[k] && before);
        }
      }
#pragma unroll
      for (int k = 0; k < kRankPerThread; ++k) {
        const int64_t own = row + k * kRankThreads;
        if (own >= count) continue;
        if (rank[k]) atomicAdd(&work.ranks[begin + own], rank[k]);
        if (slot[k]) atomicAdd(&work.slots[begin + own], slot[k]);
      }
    }
  }
}

// mmcv's batched_nms: boxes + group * (largest coordinate + 1), each operation rounded. Where coordinates are negative,
// which mmcv does not provide for, the distance grows by the lowest.
__device__ float4 shifted(const float4& box, int32_t group, const ImageState& image) {
  const float extent = __fadd_rn(__int_as_float(image.largest_bits), __int_as_float(image.minus_lowest_bits));
  const float shift = __fmul_rn(static_cast<float>(group), __fadd_rn(extent, 1.f));
  return make_float4(__fadd_rn(box.x, shift), __fadd_rn(box.y, shift), __fadd_rn(box.z, shift),
                     __fadd_rn(box.w, shift));
}

__global__ void scatter_candidates(GroupedNmsArguments in, Workspace work) {
  for (int64_t b = blockIdx.y; b < in.batch; b += gridDim.y) {
    const int64_t begin = b * in.num_boxes;
    const ImageState image = work.images[b];
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= image.num_candidates) continue;
    const uint32_t index = index_of_key(work.keys[begin + i]);
    const int32_t group = work.groups[begin + i];
    const int32_t rank = work.ranks[begin + i];
    const int64_t slot = begin + work.slots[begin + i];
    const float4 box = load_box4(in.boxes, begin + index);
    work.index_of_rank[begin + rank] = static_cast<int32_t>(index);
    work.slot_boxes[slot] = in.shift_groups ? shifted(box, group, image) : box;
    work.slot_groups[slot] = group;
    work.slot_ranks[slot] = rank;
  }
}

__device__ Box as_box(const float4& box) { return {box.x, box.y, box.z, box.w}; }

struct Threshold {
  float value;
  bool bounds_decide;  // see below
};

// suppresses() of the shared maths without the division, except where rounding could decide: within 1e-6 of the
// threshold, eight times what the two roundings between the quotient and the product can make, or where the product
// leaves the range of normal numbers.
__device__ bool removes(const float4& kept, float kept_area, const float4& other, float other_area,
                        const Threshold& threshold) {
  const float width = fminf(kept.z, other.z) - fmaxf(kept.x, other.x);
  const float height = fminf(kept.w, other.w) - fmaxf(kept.y, other.y);
  const float intersection = __fmul_rn(fmaxf(width, 0.f), fmaxf(height, 0.f));
  const float limit = threshold.value * __fsub_rn(__fadd_rn(kept_area, other_area), intersection);
  if (threshold.bounds_decide && limit > 1e-30f && limit < 1e30f) {
    if (intersection < limit * 0.999999f) return false;
    if (intersection > limit * 1.000001f) return true;
  }
  return suppresses(as_box(kept), as_box(other), threshold.value, 0.f);
}

struct SuppressShared {
  float4 boxes[kTile];
  float areas[kTile];
  union {
    uint32_t mask[kTile * kMaskStride];  // bit j of word w of row i: box i removes box 32 w + j of the tile
    struct {
      float4 boxes[kTile];
      float areas[kTile];
    } kept;
  };
  uint32_t removed[kTileWords];
  uint32_t kept_bits[kTileWords];
  int num_kept;
  int next_start;
};

// Marks the boxes of the tile that a box kept from earlier tiles removes.
__device__ void remove_by_kept(SuppressShared& shared, const float4* kept_boxes, int num_kept, int num_boxes,
                               const Threshold& threshold) {
  const int words = (num_boxes + kWarp - 1) / kWarp;
  const int teams = kSuppressWarps / words;
  const int word = threadIdx.x / kWarp % words;
  const int team = threadIdx.x / kWarp / words;
  const int own = word * kWarp + threadIdx.x % kWarp;
  const bool exists = own < num_boxes;
  const float4 box = shared.boxes[exists ? own : 0];
  const float area = shared.areas[exists ? own : 0];
  bool removed = !exists;
  for (int chunk = 0; chunk < num_kept; chunk += kTile) {
    const int size = min(kTile, num_kept - chunk);
    for (int i = threadIdx.x; i < size; i += kSuppressThreads) {
      const float4 kept = kept_boxes[chunk + i];
      shared.kept.boxes[i] = kept;
      shared.kept.areas[i] = box_area(as_box(kept), 0.f);
    }
    __syncthreads();
    if (team < teams) {
      for (int i = team; i < size; i += teams) {
        if (!removed) removed = removes(shared.kept.boxes[i], shared.kept.areas[i], box, area, threshold);
        if (__all_sync(kAllLanes, removed)) break;
      }
    }
    __syncthreads();
  }
  const uint32_t bits = __ballot_sync(kAllLanes, removed && exists);
  if (team < teams && threadIdx.x % kWarp == 0 && bits) atomicOr(&shared.removed[word], bits);
  __syncthreads();
}

// Fills the part of the mask where a better box may remove a worse one: 32 rows by 32 columns per warp and step.
__device__ void compare_tile(SuppressShared& shared, int num_boxes, const Threshold& threshold) {
  const int words = (num_boxes + kWarp - 1) / kWarp;
  const int lane = threadIdx.x % kWarp;
  for (int item = threadIdx.x / kWarp; item < words * (words + 1) / 2; item += kSuppressWarps) {
    // Item (row_word, word) of the upper triangle, column by column.
    int word = 0;
    while ((word + 1) * (word + 2) / 2 <= item) ++word;
    const int row_word = item - word * (word + 1) / 2;
    const int row = row_word * kWarp + lane;
    const bool live = row < num_boxes && !(shared.removed[row_word] >> lane & 1);
    if (!__any_sync(kAllLanes, live)) continue;
    const float4 box = shared.boxes[row];
    const float area = shared.areas[row];
    const int last = min(kWarp, num_boxes - word * kWarp);
    uint32_t candidates = ~shared.removed[word];
    if (last < kWarp) candidates &= (1u << last) - 1;
    uint32_t bits = 0;
    while (candidates) {
      const int j = __ffs(candidates) - 1;
      candidates &= candidates - 1;
      const int column = word * kWarp + j;
      if (live && column > row && removes(box, area, shared.boxes[column], shared.areas[column], threshold)) {
        bits |= 1u << j;
      }
    }
    shared.mask[row * kMaskStride + word] = bits;
  }
  __syncthreads();
}

// The greedy walk over the tile, by the first warp: lane w holds word w of the boxes removed.
__device__ void walk_tile(SuppressShared& shared, int num_boxes, int num_kept, int max_kept) {
  const int lane = threadIdx.x;
  const int words = (num_boxes + kWarp - 1) / kWarp;
  uint32_t removed = lane < words ? shared.removed[lane] : ~0u;
  if (lane == words - 1 && num_boxes % kWarp) removed |= ~0u << num_boxes % kWarp;
  uint32_t own_kept = 0;
  for (int word = 0; word < words; ++word) {
    const uint32_t* rows = shared.mask + word * kWarp * kMaskStride;
    uint32_t alive = ~__shfl_sync(kAllLanes, removed, word);
    if (!alive) continue;
    uint32_t diagonal[kWarp];
#pragma unroll
    for (int j = 0; j < kWarp; ++j) diagonal[j] = rows[j * kMaskStride + word];
#pragma unroll
    for (int j = 0; j < kWarp; ++j) {
      if (alive >> j & 1) alive &= ~diagonal[j];
    }
    while (num_kept + __popc(alive) > max_kept) alive &= ~(0x80000000u >> __clz(alive));
    num_kept += __popc(alive);
    if (lane == word) own_kept = alive;
    if (num_kept == max_kept) break;
    if (lane > word && lane < words) {
#pragma unroll 8
      for (int j = 0; j < kWarp; ++j) {
        if (alive >> j & 1) removed |= rows[j * kMaskStride + lane];
      }
    }
  }
  if (lane < kTileWords) shared.kept_bits[lane] = own_kept;
  if (lane == 0) shared.num_kept = num_kept;
}

// NMS of the group that begins at slot `start`. Returns the slot after its last box, or, where the output is full
// before, one past a box of it.
__device__ int suppress_group(SuppressShared& shared, const GroupedNmsArguments& in, const Workspace& work, int64_t b,
                              int start, int count, const Threshold& threshold) {
  const int64_t image_begin = b * in.num_boxes;
  float4* boxes = work.slot_boxes + image_begin;
  const int32_t* groups = work.slot_groups + image_begin;
  const int32_t* ranks = work.slot_ranks + image_begin;
  uint32_t* kept_bitmap = work.kept + b * work.kept_words;
  const int32_t group = groups[start];
  int num_kept = 0;
  int position = start;
  while (true) {
    const int own = threadIdx.x;
    // Slots are far below 2^31 - kTile: 16 bytes each, and num_boxes is checked.
    const bool exists = own < kTile && position + own < count && groups[position + own] == group;
    if (exists) {
      const float4 box = boxes[position + own];
      shared.boxes[own] = box;
      shared.areas[own] = box_area(as_box(box), 0.f);
    }
    if (own < kTileWords) shared.removed[own] = 0;
    const int num_boxes = __syncthreads_count(exists);
    if (num_boxes == 0) return position;
    if (num_kept > 0) remove_by_kept(shared, boxes + start, num_kept, num_boxes, threshold);
    compare_tile(shared, num_boxes, threshold);
    if (own < kWarp) walk_tile(shared, num_boxes, num_kept, in.max_output);
    __syncthreads();
    if (exists && shared.kept_bits[own / kWarp] >> own % kWarp & 1) {
      int place = num_kept + __popc(shared.kept_bits[own / kWarp] & ((1u << own % kWarp) - 1));
      for (int word = 0; word < own / kWarp; ++word) place += __popc(shared.kept_bits[word]);
      // Slots up to here have been read: no more boxes are kept than were looked at.
      boxes[start + place] = shared.boxes[own];
      const int rank = ranks[position + own];
      atomicOr(&kept_bitmap[rank / kWarp], 1u << rank % kWarp);
    }
    num_kept = shared.num_kept;
    position += num_boxes;
    __syncthreads();
    if (num_boxes < kTile || num_kept >= in.max_output) return position;
  }
}

// The first slot from `begin` on, below `end`, at which a group starts; `end` where there is none.
__device__ int find_start(SuppressShared& shared, const int32_t* groups, int begin, int end) {
  while (begin < end) {
    if (threadIdx.x == 0) shared.next_start = end;
    __syncthreads();
    const int slot = begin + static_cast<int>(threadIdx.x);
    if (slot < end && (slot == 0 || groups[slot] != groups[slot - 1])) atomicMin(&shared.next_start, slot);
    __syncthreads();
    const int found = shared.next_start;
    __syncthreads();
    if (found < end) return found;
    begin += kSuppressThreads;
  }
  return end;
}

// Block x of image y takes the groups that start in its share of the slots.
__global__ void __launch_bounds__(kSuppressThreads) suppress_groups(GroupedNmsArguments in, Workspace work) {
  __shared__ SuppressShared shared;
  const Threshold threshold{in.iou_threshold, in.iou_threshold > 0.f};
  for (int64_t b = blockIdx.y; b < in.batch; b += gridDim.y) {
    const int count = work.images[b].num_candidates;
    const int share = (count + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
    const int64_t begin = static_cast<int64_t>(share) * blockIdx.x;
    if (begin >= count) continue;
    const int end = min(count, static_cast<int>(begin) + share);
    const int32_t* groups = work.slot_groups + b * in.num_boxes;
    int slot = static_cast<int>(begin);
    while ((slot = find_start(shared, groups, slot, end)) < end) {
      slot = suppress_group(shared, in, work, b, slot, count, threshold);
    }
  }
}

// One block per image.
__global__ void __launch_bounds__(kOutputThreads) write_output(GroupedNmsArguments in, Workspace work) {
  __shared__ int totals[kOutputWarps];
  for (int64_t b = blockIdx.x; b < in.batch; b += gridDim.x) {
    const int32_t* index_of_rank = work.index_of_rank + b * in.num_boxes;
    const uint32_t* kept = work.kept + b * work.kept_words;
    int32_t* indices = in.indices + b * in.max_output;
    const int num_words = (work.images[b].num_candidates + kWarp - 1) / kWarp;
    int written = 0;  // may pass max_output by the last round's surplus
    for (int first = 0; first < num_words && written < in.max_output; first += kOutputThreads) {
      const int word = first + static_cast<int>(threadIdx.x);
      uint32_t bits = word < num_words ? kept[word] : 0;
      int total;
      int place = written + exclusive_block_sum(__popc(bits), totals, kOutputWarps, total);
      for (; bits && place < in.max_output; bits &= bits - 1, ++place) {
        indices[place] = index_of_rank[word * kWarp + __ffs(bits) - 1];
      }
      written += total;
    }
    const int count = min(written, in.max_output);
    for (int64_t i = static_cast<int64_t>(count) + threadIdx.x; i < in.max_output; i += kOutputThreads) {
      indices[i] = -1;
    }
    if (threadIdx.x == 0) in.count[b] = count;
  }
}

bool is_valid(const GroupedNmsArguments& in) {
  // Indices are int32, and loops over slots add up to a tile to them.
  return in.batch >= 0 && in.num_boxes >= 0 && in.num_boxes <= INT32_MAX / 2 && in.max_output >= 1 &&
         (in.groups_batch == in.batch || in.groups_batch == 1);
}

unsigned blocks_for(int64_t work_items, int64_t per_block) {
  return static_cast<unsigned>((work_items + per_block - 1) / per_block);
}

}  // namespace

size_t grouped_nms_workspace_size(int32_t batch, int32_t num_boxes) {
  if (batch < 0 || num_boxes < 0) return 0;
  return partition(nullptr, batch, num_boxes).size;
}

cudaError_t launch_grouped_nms(const GroupedNmsArguments& in, void* workspace, size_t workspace_size,
                               cudaStream_t stream) {
  if (!is_valid(in)) return cudaErrorInvalidValue;
  if (in.batch == 0) return cudaSuccess;
  const Workspace work = partition(workspace, in.batch, in.num_boxes);
  if (workspace == nullptr || workspace_size < work.size) return cudaErrorInvalidValue;
  const cudaError_t cleared = cudaMemsetAsync(workspace, 0, work.cleared_bytes, stream);
  if (cleared != cudaSuccess) return cleared;

  const unsigned images = static_cast<unsigned>(in.batch < kMaxGridY ? in.batch : kMaxGridY);
  if (in.num_boxes > 0) {
    const unsigned collect_blocks = blocks_for(in.num_boxes, kCollectThreads);
    collect_candidates<<<dim3(collect_blocks, images), kCollectThreads, 0, stream>>>(in, work);
    const int64_t rank_items = static_cast<int64_t>(blocks_for(in.num_boxes, kRankRows)) *
                               static_cast<int64_t>(blocks_for(in.num_boxes, kRankColumns));
    const unsigned rank_blocks = static_cast<unsigned>(rank_items < kRankMaxBlocks ? rank_items : kRankMaxBlocks);
    rank_candidates<<<dim3(rank_blocks, images), kRankThreads, 0, stream>>>(in, work);
    scatter_candidates<<<dim3(collect_blocks, images), kCollectThreads, 0, stream>>>(in, work);
    const unsigned groups_blocks =
        static_cast<unsigned>(in.num_boxes < kSuppressMaxBlocks ? in.num_boxes : kSuppressMaxBlocks);
    suppress_groups<<<dim3(groups_blocks, images), kSuppressThreads, 0, stream>>>(in, work);
  }
  write_output<<<images, kOutputThreads, 0, stream>>>(in, work);
  return cudaGetLastError();
}

}  // namespace maskrcnn
