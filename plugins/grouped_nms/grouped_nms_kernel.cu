// GroupedNMS on the GPU: seven launches whose sizes depend on shapes only.
//
//   collect   candidates of each image, in any order
//   sort      each chunk of them, once by score and once by group, then score
//   rank      how many candidates come before this one, over all groups and within the sorted groups: a bisection in
//             every chunk
//   scatter   boxes into group-major order, best first within a group
//   compare   on the whole GPU: a bit for each pair of boxes of one group that lie near enough in the sorted order
//   suppress  one block per group walks its boxes, best first, with those bits; a group too large for them goes in
//             tiles, each first compared with the boxes kept from the tiles before
//   output    kept boxes by rank
#include <cuda_runtime.h>

#include <algorithm>

#include "plugins/common/block_sum.h"
#include "plugins/grouped_nms/grouped_nms_kernel.h"
#include "plugins/grouped_nms/grouped_nms_math.h"

namespace maskrcnn {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr size_t kAlignment = 256;
constexpr int kMaxGridY = 65535;

constexpr int kCollectThreads = 256;

constexpr int kChunk = 512;  // candidates that are sorted together: a power of two
constexpr int kSortThreads = kChunk / 2;
constexpr int kSortMaxBlocks = 512;  // per image
constexpr uint64_t kLastKey = ~uint64_t{0};  // after every candidate's
constexpr int32_t kLastGroup = INT32_MAX;

constexpr int kRankThreads = 256;
constexpr int kRankPerThread = 2;
constexpr int kRankRows = kRankThreads * kRankPerThread;
constexpr int kRankMaxBlocks = 512;  // per image: fills the largest GPUs at batch 1

constexpr int kCompareThreads = 256;
constexpr int kCompareWarps = kCompareThreads / kWarp;
constexpr int kCompareMaxBlocks = 512;  // per image

// How many words of 32 boxes a row of the bit matrix has, and a tile of boxes that are walked with it. RPN's groups of
// 1000 fit one tile. Where there are many boxes, groups are many, too, and small: classes.
constexpr int kWideWords = 64;
constexpr int kNarrowWords = 8;
constexpr int32_t kMaxWideBoxes = 16384;  // a row is 256 bytes
constexpr int kSuppressMaxBlocks = 128;   // per image
constexpr int kWideSuppressBlocks = 128;  // of 1024 threads, of all images: what a large GPU holds at once
constexpr int kWideSuppressMinBlocks = 16;  // per image
constexpr int kKeptChunk = 512;

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
  uint64_t* chunk_keys;          // keys, sorted within each chunk
  uint64_t* group_chunk_keys;    // keys and groups, sorted within each chunk by group, then key
  int32_t* group_chunk_groups;
  int32_t* ranks;          // of candidates
  int32_t* slots;          // of candidates
  int32_t* index_of_rank;  // in the input
  float4* slot_boxes;      // in turn overwritten by the boxes kept, from each group's first slot on
  int32_t* slot_groups;
  int32_t* slot_ranks;
  // (batch, kept_words * 32, window): bit j of word k of row s: the box in slot s and that in slot 32 (s / 32 + k) + j
  // overlap too much; the first word has the slots before s alone, the others are all after it
  uint32_t* matrix;
  int32_t kept_words;
  int32_t window;  // words per row of the matrix
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
  take(out.chunk_keys, base, offset, boxes);
  take(out.group_chunk_keys, base, offset, boxes);
  take(out.group_chunk_groups, base, offset, boxes);
  take(out.ranks, base, offset, boxes);
  take(out.slots, base, offset, boxes);
  take(out.index_of_rank, base, offset, boxes);
  take(out.slot_boxes, base, offset, boxes);
  take(out.slot_groups, base, offset, boxes);
  take(out.slot_ranks, base, offset, boxes);
  out.window = num_boxes <= kMaxWideBoxes ? kWideWords : kNarrowWords;
  take(out.matrix, base, offset, images * out.kept_words * kWarp * out.window);
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

// Whether the first of two candidates comes before the second by group, then key.
__device__ bool comes_before(int32_t group, uint64_t key, int32_t other_group, uint64_t other_key) {
  return group < other_group || (group == other_group && key < other_key);
}

// A bitonic sort per block: even blocks by key, odd ones by group, then key.
__global__ void __launch_bounds__(kSortThreads) sort_chunks(GroupedNmsArguments in, Workspace work) {
  __shared__ uint64_t keys[kChunk];
  __shared__ int32_t groups[kChunk];
  for (int64_t b = blockIdx.y; b < in.batch; b += gridDim.y) {
    const int64_t begin = b * in.num_boxes;
    const int count = work.images[b].num_candidates;
    const int num_items = (count + kChunk - 1) / kChunk * 2;
    for (int item = blockIdx.x; item < num_items; item += gridDim.x) {
      const bool by_group = item % 2;
      const int first = item / 2 * kChunk;
      const int size = min(kChunk, count - first);
      __syncthreads();
      for (int i = threadIdx.x; i < kChunk; i += kSortThreads) {
        keys[i] = i < size ? work.keys[begin + first + i] : kLastKey;
        groups[i] = !by_group ? 0 : i < size ? work.groups[begin + first + i] : kLastGroup;
      }
      __syncthreads();
      for (int run = 2; run <= kChunk; run *= 2) {
        for (int stride = run / 2; stride > 0; stride /= 2) {
          const int thread = threadIdx.x;
          const int low = 2 * thread - (thread & (stride - 1));
          const int high = low + stride;
          const uint64_t low_key = keys[low], high_key = keys[high];
          const int32_t low_group = groups[low], high_group = groups[high];
          const bool upwards = (low & run) == 0;
          const bool swaps = upwards ? comes_before(high_group, high_key, low_group, low_key)
                                     : comes_before(low_group, low_key, high_group, high_key);
          if (swaps) {
            keys[low] = high_key;
            keys[high] = low_key;
            groups[low] = high_group;
            groups[high] = low_group;
          }
          __syncthreads();
        }
      }
      for (int i = threadIdx.x; i < size; i += kSortThreads) {
        (by_group ? work.group_chunk_keys : work.chunk_keys)[begin + first + i] = keys[i];
        if (by_group) work.group_chunk_groups[begin + first + i] = groups[i];
      }
    }
  }
}

// Each item counts, for a tile of candidates, those of one chunk that come before.
__global__ void __launch_bounds__(kRankThreads) rank_candidates(GroupedNmsArguments in, Workspace work) {
  __shared__ uint64_t chunk_keys[kChunk];
  __shared__ uint64_t group_keys[kChunk];
  __shared__ int32_t groups[kChunk];
  for (int64_t b = blockIdx.y; b < in.batch; b += gridDim.y) {
    const int64_t begin = b * in.num_boxes;
    const int count = work.images[b].num_candidates;
    const int64_t row_tiles = (static_cast<int64_t>(count) + kRankRows - 1) / kRankRows;
    const int64_t chunks = (static_cast<int64_t>(count) + kChunk - 1) / kChunk;
    for (int64_t item = blockIdx.x; item < row_tiles * chunks; item += gridDim.x) {
      const int64_t chunk = item / row_tiles * kChunk;
      __syncthreads();
      for (int i = threadIdx.x; i < kChunk; i += kRankThreads) {
        const bool exists = chunk + i < count;
        chunk_keys[i] = exists ? work.chunk_keys[begin + chunk + i] : kLastKey;
        group_keys[i] = exists ? work.group_chunk_keys[begin + chunk + i] : kLastKey;
        groups[i] = exists ? work.group_chunk_groups[begin + chunk + i] : kLastGroup;
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
#pragma unroll
      for (int step = kChunk / 2; step > 0; step /= 2) {
#pragma unroll
        for (int k = 0; k < kRankPerThread; ++k) {
          const int by_key = rank[k] + step - 1, by_group = slot[k] + step - 1;
          if (chunk_keys[by_key] < key[k]) rank[k] += step;
          if (comes_before(groups[by_group], group_keys[by_group], group[k], key[k])) slot[k] += step;
        }
      }
#pragma unroll
      for (int k = 0; k < kRankPerThread; ++k) {
        const int64_t own = row + k * kRankThreads;
        if (own >= count) continue;
        // The steps add up to one less than the chunk.
        rank[k] += chunk_keys[rank[k]] < key[k];
        slot[k] += comes_before(groups[slot[k]], group_keys[slot[k]], group[k], key[k]);
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

// Each warp compares 32 boxes with each other or with 32 after them in the order. Blocks of slots that share no group
// are left out: nothing reads their words.
__global__ void __launch_bounds__(kCompareThreads) compare_boxes(GroupedNmsArguments in, Workspace work) {
  __shared__ float4 column_boxes[kCompareWarps][kWarp];
  __shared__ float column_areas[kCompareWarps][kWarp];
  __shared__ int32_t column_groups[kCompareWarps][kWarp];
  const Threshold threshold{in.iou_threshold, in.iou_threshold > 0.f};
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  for (int64_t b = blockIdx.y; b < in.batch; b += gridDim.y) {
    const int count = work.images[b].num_candidates;
    const int num_blocks = (count + kWarp - 1) / kWarp;
    const float4* boxes = work.slot_boxes + b * in.num_boxes;
    const int32_t* groups = work.slot_groups + b * in.num_boxes;
    uint32_t* matrix = work.matrix + b * work.kept_words * kWarp * work.window;
    const int64_t num_items = static_cast<int64_t>(num_blocks) * work.window;
    for (int64_t item = static_cast<int64_t>(blockIdx.x) * kCompareWarps + warp; item < num_items;
         item += static_cast<int64_t>(gridDim.x) * kCompareWarps) {
      const int row_block = static_cast<int>(item / work.window);
      const int word = static_cast<int>(item % work.window);
      const int first_column = (row_block + word) * kWarp;
      if (first_column >= count) continue;
      const int last_row = min(row_block * kWarp + kWarp, count) - 1;
      if (word > 0 && groups[last_row] != groups[first_column]) continue;
      const int row = row_block * kWarp + lane;
      const int column = first_column + lane;
      __syncwarp();
      if (column < count) {
        const float4 box = boxes[column];
        column_boxes[warp][lane] = box;
        column_areas[warp][lane] = box_area(as_box(box), 0.f);
        column_groups[warp][lane] = groups[column];
      }
      __syncwarp();
      if (row >= count) continue;
      const float4 box = boxes[row];
      const float area = box_area(as_box(box), 0.f);
      const int32_t group = groups[row];
      const int num_columns = min(kWarp, count - first_column);
      uint32_t bits = 0;
#pragma unroll 8
      for (int j = 0; j < num_columns; ++j) {
        if (removes(box, area, column_boxes[warp][j], column_areas[warp][j], threshold)) bits |= 1u << j;
      }
      // Slots are sorted by group: the outermost tell whether all are of one.
      if (groups[row_block * kWarp] != groups[first_column + num_columns - 1]) {
        for (int j = 0; j < num_columns; ++j) {
          if (column_groups[warp][j] != group) bits &= ~(1u << j);
        }
      }
      if (word == 0) bits &= (1u << lane) - 1;
      matrix[static_cast<int64_t>(row) * work.window + word] = bits;
    }
  }
}

// A tile: the slots from `base`, a multiple of 32, on, 32 for each word of a row of the matrix.
struct Tile {
  int base;
  int last_word;  // the last with a box of the group
};

template <int kWindow>
struct SuppressShared {
  static constexpr int kThreads = kWindow == kWideWords ? 1024 : kWindow * kWarp;
  static constexpr int kSlotsPerThread = kWindow * kWarp / kThreads;
  uint32_t rows[2][kWarp][kWindow + 1];  // of the matrix: those of the word at hand, and of the next
  float4 kept_boxes[kKeptChunk];
  float kept_areas[kKeptChunk];
  uint32_t exists[kWindow];  // boxes of the group
  uint32_t removed[kWindow];
  uint32_t kept[kWindow];
  int num_kept;
  int next_start;
};

// Marks the boxes of the tile that a box kept from earlier tiles removes. Each word is one warp's.
template <int kWindow>
__device__ void remove_by_kept(SuppressShared<kWindow>& shared, const float4* boxes, const Tile& tile,
                               const float4* kept_boxes, int num_kept, const Threshold& threshold) {
  using Shared = SuppressShared<kWindow>;
  const int lane = threadIdx.x % kWarp;
  for (int chunk = 0; chunk < num_kept; chunk += kKeptChunk) {
    const int size = min(kKeptChunk, num_kept - chunk);
    for (int i = threadIdx.x; i < size; i += Shared::kThreads) {
      const float4 kept = kept_boxes[chunk + i];
      shared.kept_boxes[i] = kept;
      shared.kept_areas[i] = box_area(as_box(kept), 0.f);
    }
    __syncthreads();
    for (int word = threadIdx.x / kWarp; word <= tile.last_word; word += Shared::kThreads / kWarp) {
      bool removed = shared.removed[word] >> lane & 1;
      const float4 box = removed ? make_float4(0.f, 0.f, 0.f, 0.f) : boxes[tile.base + word * kWarp + lane];
      const float area = box_area(as_box(box), 0.f);
      for (int i = 0; i < size && !__all_sync(kAllLanes, removed); ++i) {
        if (!removed) removed = removes(shared.kept_boxes[i], shared.kept_areas[i], box, area, threshold);
      }
      const uint32_t bits = __ballot_sync(kAllLanes, removed);
      if (lane == 0) shared.removed[word] = bits;
    }
    __syncthreads();
  }
}

// The first warp's step for one word: which of its boxes stay, and what they remove. removed: of words `lane`,
// `lane` + 32 and so on. rows: those of the word's boxes.
template <int kWindow>
__device__ int walk_word(SuppressShared<kWindow>& shared, uint32_t (&removed)[(kWindow + kWarp - 1) / kWarp], int word,
                         int last_word, int num_kept, int max_kept) {
  constexpr int kParts = (kWindow + kWarp - 1) / kWarp;
  const int lane = threadIdx.x;
  const uint32_t(&rows)[kWarp][kWindow + 1] = shared.rows[word % 2];
  uint32_t own = removed[0];
  if constexpr (kParts > 1) own = word < kWarp ? removed[0] : removed[1];
  const uint32_t candidates = ~__shfl_sync(kAllLanes, own, word % kWarp);
  if (!candidates) return num_kept;
  // Box i stays unless a box before it that stays removes it. From all, repeated until nothing changes: after k rounds
  // the first k boxes are right, and mostly all of them after a few.
  const uint32_t removers = candidates >> lane & 1 ? rows[lane][0] : kAllLanes;
  uint32_t alive = candidates;
  for (uint32_t before = 0; before != alive;) {
    before = alive;
    alive = candidates & __ballot_sync(kAllLanes, !(removers & before));
  }
  while (num_kept + __popc(alive) > max_kept) alive &= ~(0x80000000u >> __clz(alive));
  if (lane == 0) shared.kept[word] = alive;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int other = lane + part * kWarp;
    if (other <= word || other > last_word) continue;
#pragma unroll
    for (int j = 0; j < kWarp; ++j) {
      if (alive >> j & 1) removed[part] |= rows[j][other - word];
    }
  }
  return num_kept + __popc(alive);
}

// A thread's share of the rows of a word's boxes; zeros past the tile's last word.
template <int kWindow>
__device__ void load_rows(uint32_t (&rows)[SuppressShared<kWindow>::kSlotsPerThread], const uint32_t* matrix,
                          const Tile& tile, int word) {
  using Shared = SuppressShared<kWindow>;
#pragma unroll
  for (int i = 0; i < Shared::kSlotsPerThread; ++i) {
    const int element = static_cast<int>(threadIdx.x) + i * Shared::kThreads;
    const int64_t row = tile.base + word * kWarp + element / kWindow;
    const bool needed = element % kWindow <= tile.last_word - word;
    rows[i] = needed ? matrix[row * kWindow + element % kWindow] : 0;
  }
}

// The greedy walk over the tile, a word at a time, by the first warp; the others bring the rows of the two words after.
template <int kWindow>
__device__ void walk_tile(SuppressShared<kWindow>& shared, const uint32_t* matrix, const Tile& tile, int num_kept,
                          int max_kept) {
  using Shared = SuppressShared<kWindow>;
  constexpr int kParts = (kWindow + kWarp - 1) / kWarp;
  const bool walks = threadIdx.x < kWarp;
  uint32_t removed[kParts];
  for (int part = 0; part < kParts; ++part) {
    const int word = static_cast<int>(threadIdx.x) + part * kWarp;
    removed[part] = walks && word <= tile.last_word ? shared.removed[word] : ~0u;
  }
  uint32_t next[Shared::kSlotsPerThread];
  uint32_t after[Shared::kSlotsPerThread];
  load_rows<kWindow>(next, matrix, tile, 0);
  for (int word = -1; word <= tile.last_word; ++word) {
    load_rows<kWindow>(after, matrix, tile, word + 2);
    if (walks && word >= 0) num_kept = walk_word(shared, removed, word, tile.last_word, num_kept, max_kept);
#pragma unroll
    for (int i = 0; i < Shared::kSlotsPerThread; ++i) {
      const int element = static_cast<int>(threadIdx.x) + i * Shared::kThreads;
      shared.rows[(word + 1) % 2][element / kWindow][element % kWindow] = next[i];
      next[i] = after[i];
    }
    if (__syncthreads_or(walks && num_kept >= max_kept)) break;
  }
  if (threadIdx.x == 0) shared.num_kept = num_kept;
  __syncthreads();
}

// Finds the boxes of `group` among the tile's slots from `position` on.
template <int kWindow>
__device__ void find_boxes(SuppressShared<kWindow>& shared, const int32_t* groups, int32_t group, Tile& tile,
                           int position, int count) {
  using Shared = SuppressShared<kWindow>;
  for (int i = 0; i < Shared::kSlotsPerThread; ++i) {
    const int own = static_cast<int>(threadIdx.x) + i * Shared::kThreads;
    // Slots are far below 2^31 - 2048: 16 bytes each, and num_boxes is checked.
    const int slot = tile.base + own;
    const uint32_t exists = __ballot_sync(kAllLanes, slot >= position && slot < count && groups[slot] == group);
    if (own % kWarp == 0) {
      shared.exists[own / kWarp] = exists;
      shared.removed[own / kWarp] = ~exists;
      shared.kept[own / kWarp] = 0;
    }
  }
  __syncthreads();
  tile.last_word = 0;
  while (tile.last_word + 1 < kWindow && shared.exists[tile.last_word + 1]) ++tile.last_word;
}

// Records the tile's kept boxes by rank, and, if another tile follows, moves them to the group's first slots.
template <int kWindow>
__device__ void record_kept(SuppressShared<kWindow>& shared, const int32_t* ranks, uint32_t* kept_bitmap,
                            float4* boxes, float4* kept_boxes, const Tile& tile, int num_kept, bool move) {
  using Shared = SuppressShared<kWindow>;
  float4 moved[Shared::kSlotsPerThread];
  int place[Shared::kSlotsPerThread];
  for (int i = 0; i < Shared::kSlotsPerThread; ++i) {
    const int own = static_cast<int>(threadIdx.x) + i * Shared::kThreads;
    const int word = own / kWarp;
    place[i] = -1;
    if (!(shared.kept[word] >> own % kWarp & 1)) continue;
    const int rank = ranks[tile.base + own];
    atomicOr(&kept_bitmap[rank / kWarp], 1u << rank % kWarp);
    if (!move) continue;
    place[i] = num_kept + __popc(shared.kept[word] & ((1u << own % kWarp) - 1));
    for (int w = 0; w < word; ++w) place[i] += __popc(shared.kept[w]);
    moved[i] = boxes[tile.base + own];
  }
  __syncthreads();
  if (!move) return;
  for (int i = 0; i < Shared::kSlotsPerThread; ++i) {
    // The slots up to here have been read: no more boxes are kept than were looked at.
    if (place[i] >= 0) kept_boxes[place[i]] = moved[i];
  }
  __syncthreads();
}

// NMS of the group that begins at slot `start`. Returns a slot after `start` up to which nothing is left to do.
template <int kWindow>
__device__ int suppress_group(SuppressShared<kWindow>& shared, const GroupedNmsArguments& in, const Workspace& work,
                              int64_t b, int start, int count, const Threshold& threshold) {
  float4* boxes = work.slot_boxes + b * in.num_boxes;
  const int32_t* groups = work.slot_groups + b * in.num_boxes;
  const int32_t* ranks = work.slot_ranks + b * in.num_boxes;
  const uint32_t* matrix = work.matrix + b * work.kept_words * kWarp * kWindow;
  uint32_t* kept_bitmap = work.kept + b * work.kept_words;
  const int32_t group = groups[start];
  int num_kept = 0;
  int position = start;
  while (true) {
    Tile tile{position / kWarp * kWarp, 0};
    find_boxes(shared, groups, group, tile, position, count);
    if (num_kept > 0) remove_by_kept(shared, boxes, tile, boxes + start, num_kept, threshold);
    walk_tile(shared, matrix, tile, num_kept, in.max_output);
    const int end = tile.base + kWindow * kWarp;
    const bool ends = end >= count || groups[end] != group || shared.num_kept >= in.max_output;
    record_kept(shared, ranks, kept_bitmap, boxes, boxes + start, tile, num_kept, !ends);
    num_kept = shared.num_kept;
    position += __popc(shared.exists[0]);
    for (int word = 1; word <= tile.last_word; ++word) position += __popc(shared.exists[word]);
    __syncthreads();
    if (ends) return position;
  }
}

// The first slot from `begin` on, below `end`, at which a group starts; `end` where there is none.
template <int kWindow>
__device__ int find_start(SuppressShared<kWindow>& shared, const int32_t* groups, int begin, int end) {
  while (begin < end) {
    if (threadIdx.x == 0) shared.next_start = end;
    __syncthreads();
    const int slot = begin + static_cast<int>(threadIdx.x);
    if (slot < end && (slot == 0 || groups[slot] != groups[slot - 1])) atomicMin(&shared.next_start, slot);
    __syncthreads();
    const int found = shared.next_start;
    __syncthreads();
    if (found < end) return found;
    begin += SuppressShared<kWindow>::kThreads;
  }
  return end;
}

// Block x of image y takes the groups that start in its share of the slots.
template <int kWindow>
__global__ void __launch_bounds__(SuppressShared<kWindow>::kThreads)
    suppress_groups(GroupedNmsArguments in, Workspace work) {
  __shared__ SuppressShared<kWindow> shared;
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
  // A row of the matrix is shorter beyond kMaxWideBoxes: the largest of fewer boxes may need more.
  const size_t of_fewer = partition(nullptr, batch, std::min(num_boxes, kMaxWideBoxes)).size;
  return std::max(partition(nullptr, batch, num_boxes).size, of_fewer);
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
    const unsigned sort_blocks = 2 * blocks_for(in.num_boxes, kChunk);
    sort_chunks<<<dim3(sort_blocks < kSortMaxBlocks ? sort_blocks : kSortMaxBlocks, images), kSortThreads, 0,
                  stream>>>(in, work);
    const int64_t rank_items = static_cast<int64_t>(blocks_for(in.num_boxes, kRankRows)) *
                               static_cast<int64_t>(blocks_for(in.num_boxes, kChunk));
    const unsigned rank_blocks = static_cast<unsigned>(rank_items < kRankMaxBlocks ? rank_items : kRankMaxBlocks);
    rank_candidates<<<dim3(rank_blocks, images), kRankThreads, 0, stream>>>(in, work);
    scatter_candidates<<<dim3(collect_blocks, images), kCollectThreads, 0, stream>>>(in, work);
    const unsigned compare_blocks = blocks_for(static_cast<int64_t>(work.kept_words) * work.window, kCompareWarps);
    compare_boxes<<<dim3(compare_blocks < kCompareMaxBlocks ? compare_blocks : kCompareMaxBlocks, images),
                    kCompareThreads, 0, stream>>>(in, work);
    int32_t groups_blocks = kSuppressMaxBlocks;
    if (work.window == kWideWords) {
      groups_blocks = std::clamp(kWideSuppressBlocks / in.batch, kWideSuppressMinBlocks, kSuppressMaxBlocks);
    }
    const dim3 suppress_grid(static_cast<unsigned>(std::min(in.num_boxes, groups_blocks)), images);
    if (work.window == kWideWords) {
      suppress_groups<kWideWords><<<suppress_grid, SuppressShared<kWideWords>::kThreads, 0, stream>>>(in, work);
    } else {
      suppress_groups<kNarrowWords><<<suppress_grid, SuppressShared<kNarrowWords>::kThreads, 0, stream>>>(in, work);
    }
  }
  write_output<<<images, kOutputThreads, 0, stream>>>(in, work);
  return cudaGetLastError();
}

}  // namespace maskrcnn
