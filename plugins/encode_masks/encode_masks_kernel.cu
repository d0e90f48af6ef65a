// Masks as COCO's compressed run lengths on the GPU: one block per detection, one thread per column of pixels.
//
// A column is not walked pixel by pixel. Its pixels lie in segments, between two rows of the mask; within a segment the
// probability rises or falls monotonically with the row, rounding included (interpolated()), so that it crosses the
// threshold once at most: the segment's first and last pixel say whether, bisection says where. The work depends on the
// columns and on the mask's rows, not on how many pixels the box is high, and every decision is the one that sampling
// each pixel would make.
//
// Columns go in tiles of as many as there are threads: find the ends of runs, count them, put them in order, and turn
// them into bytes. A string stays in shared memory until its length is known, and is then given its place by an atomic
// sum. One too long for that is made twice: measured, then written.
#include <cuda_runtime.h>

#include <algorithm>

#include "plugins/common/block_sum.h"
#include "plugins/encode_masks/encode_masks_kernel.h"
#include "plugins/encode_masks/encode_masks_math.h"

namespace maskrcnn {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMinBlocks = 3;          // per multiprocessor: as many as registers allow without spilling
constexpr int kMaxImages = 128;        // of one launch: their sizes are 2 of its 4 KB of parameters
constexpr int kMaxSharedCells = 4096;  // of a mask: 64 x 64; larger ones are read from global memory
constexpr int kKeptEnds = 4;           // per column: one with more is walked again
constexpr int kListedEnds = 1024;      // ends of runs that are turned into bytes at a time
constexpr int kEndsBefore = 3;         // that run_entry reads before a run's own
constexpr int kStringBytes = 8192;     // longer strings are made twice

using Arguments = EncodeMasksArguments;

struct Images {
  TargetImage images[kMaxImages];
};

// Rows of pixels between two rows of the mask; they end where the next segment begins.
struct alignas(16) Segment {
  int begin;
  int low;  // the mask's row above, as CellPosition
  float first_weight, last_weight;
};

struct BlockShared {
  int totals[kWarps];
  int num_segments;
  int64_t start;                          // of the string
  int32_t ends[kEndsBefore + kListedEnds];  // of runs: positions in the image, column by column
  uint8_t string[kStringBytes];
};

// One detection, as its block sees it.
struct Paste {
  const float* mask;  // (mask_height, mask_width)
  int mask_height, mask_width;
  float threshold;
  PasteBox box;
  int height, width;  // px of the image
  bool continues;     // the window is as high as the image: a column goes on from the last pixel of the one before
  CellPosition last_row;
  const Segment* segments;
  int num_segments;  // and one more, for the last one's end

  __device__ CellPosition row_at(int row) const {
    return cell_position(mask_position(row, box.y1, box.y2, mask_height), mask_height);
  }
  __device__ CellPosition column_at(int column) const {
    return cell_position(mask_position(column, box.x1, box.x2, mask_width), mask_width);
  }
  __device__ float mask_row(int row, const CellPosition& column) const {
    return mask_row_at(mask, mask_height, mask_width, row, column);
  }
  __device__ bool is_set(float low, float high, float weight) const {
    return interpolated(low, high, weight) >= threshold;  // false for NaN
  }
  __device__ bool is_last_pixel_set(int column) const {
    const CellPosition x = column_at(column);
    return is_set(mask_row(last_row.low, x), mask_row(last_row.low + 1, x), last_row.weight);
  }
};

// The first of rows [begin, end) whose position is at least `least`; end where there is none. Positions rise.
__device__ int first_row_at(const Paste& paste, float least, int begin, int end) {
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (mask_position(middle, paste.box.y1, paste.box.y2, paste.mask_height) >= least) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

// How many segments a box of many rows has: one before the mask, one per cell from -1 on, one behind the mask.
__host__ __device__ int max_segments(int mask_height) { return mask_height + 3; }

// segments: shared memory for max_segments + 1. A window of few rows has a segment per row: less work, and right where
// positions do not rise, which is so in boxes without height (all rows are at the mask's centre, but NaN at the box),
// or of negative height. Their windows have at most 3 rows.
__device__ void make_segments(Paste& paste, Segment* segments) {
  const PixelRange rows = paste.box.rows;
  const int most = max_segments(paste.mask_height);
  const int num_rows = rows.end - rows.begin;
  const bool by_row = num_rows <= most;
  paste.segments = segments;
  paste.num_segments = by_row ? num_rows : most;
  for (int i = threadIdx.x; i <= paste.num_segments; i += kThreads) {
    int begin = rows.begin + i;
    if (!by_row && i > 0) {
      begin = i < most ? first_row_at(paste, static_cast<float>(i - 2), rows.begin, rows.end) : rows.end;
    }
    segments[i].begin = begin;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < paste.num_segments; i += kThreads) {
    Segment& segment = segments[i];
    const CellPosition first = paste.row_at(segment.begin);
    segment.low = first.low;
    segment.first_weight = first.weight;
    segment.last_weight = paste.row_at(segments[i + 1].begin - 1).weight;
  }
  __syncthreads();
}

// The first row of a segment that is unlike the segment's first, its last being unlike it.
__device__ int first_unlike(const Paste& paste, float low, float high, int begin, int end, bool first_set) {
  int alike = begin;
  int unlike = end - 1;
  while (unlike - alike > 1) {
    const int middle = alike + (unlike - alike) / 2;
    if (paste.is_set(low, high, paste.row_at(middle).weight) == first_set) {
      alike = middle;
    } else {
      unlike = middle;
    }
  }
  return unlike;
}

// Calls visit(number, position) for each end of a run that lies in a column, or between it and the next one. Returns
// how many they are.
template <typename Visit>
__device__ int walk_column(const Paste& paste, int column, const Visit& visit) {
  const int32_t base = column * paste.height;
  const CellPosition x = paste.column_at(column);
  bool set = paste.continues && column > paste.box.columns.begin && paste.is_last_pixel_set(column - 1);
  int count = 0;
  int known_row = kOutsideCell - 1;
  float known = 0.f;  // the mask's row `known_row` in this column
  for (int i = 0; i < paste.num_segments; ++i) {
    const Segment segment = paste.segments[i];
    const int end = paste.segments[i + 1].begin;
    if (segment.begin == end) continue;
    const float low = segment.low == known_row ? known : paste.mask_row(segment.low, x);
    const float high = paste.mask_row(segment.low + 1, x);
    known_row = segment.low + 1;
    known = high;
    const bool first = paste.is_set(low, high, segment.first_weight);
    if (first != set) visit(count++, base + segment.begin);
    set = paste.is_set(low, high, segment.last_weight);
    if (first != set) visit(count++, base + first_unlike(paste, low, high, segment.begin, end, first));
  }
  const bool is_last = column == paste.box.columns.end - 1;
  const bool is_image_end = column == paste.width - 1 && paste.box.rows.end == paste.height;
  if (set && (is_last || !paste.continues) && !is_image_end) visit(count++, base + paste.box.rows.end);
  return count;
}

// The bytes of runs whose ends are in `shared.ends`, from kEndsBefore on; `first`: the number of the first of them.
// Writes from `length` on as far as `room` bytes reach, and returns the length with these runs.
__device__ int64_t encode_runs(BlockShared& shared, int64_t first, int num_runs, uint8_t* string, int64_t room,
                               int64_t length) {
  for (int begin = 0; begin < num_runs; begin += kThreads) {
    const int run = begin + static_cast<int>(threadIdx.x);
    uint8_t bytes[kMaxRunBytes];
    const int count = run < num_runs ? write_run(run_entry(first + run, shared.ends + kEndsBefore + run), bytes) : 0;
    int total;
    const int64_t at = length + exclusive_block_sum(count, shared.totals, kWarps, total);
#pragma unroll
    for (int i = 0; i < kMaxRunBytes; ++i) {
      if (i < count && at + i < room) string[at + i] = bytes[i];
    }
    length += total;
  }
  return length;
}

// The whole block calls it. Writes a mask's string as far as `room` bytes reach, and returns its length.
__device__ int64_t encode(BlockShared& shared, const Paste& paste, uint8_t* string, int64_t room) {
  int64_t length = 0;
  int64_t num_runs = 0;
  const PixelRange columns = paste.box.columns;
  if (threadIdx.x < kEndsBefore) shared.ends[threadIdx.x] = 0;
  for (int tile = columns.begin; tile < columns.end; tile += kThreads) {
    const int column = tile + static_cast<int>(threadIdx.x);
    int32_t kept[kKeptEnds];
    int count = 0;
    if (column < columns.end) {
      count = walk_column(paste, column, [&](int number, int32_t end) {
#pragma unroll
        for (int i = 0; i < kKeptEnds; ++i) {
          if (i == number) kept[i] = end;
        }
      });
    }
    int total;
    const int before = exclusive_block_sum(count, shared.totals, kWarps, total);
    for (int begin = 0; begin < total; begin += kListedEnds) {
      const int num_listed = min(kListedEnds, total - begin);
      int32_t* listed = shared.ends + kEndsBefore;
      const auto list = [&](int number, int32_t end) {
        const int at = before + number - begin;
        if (at >= 0 && at < num_listed) listed[at] = end;
      };
      if (count > kKeptEnds) {
        walk_column(paste, column, list);
      } else {
#pragma unroll
        for (int i = 0; i < kKeptEnds; ++i) {
          if (i < count) list(i, kept[i]);
        }
      }
      __syncthreads();
      length = encode_runs(shared, num_runs, num_listed, string, room, length);
      num_runs += num_listed;
      // Those before the next: num_listed may be less than kEndsBefore.
      const int32_t end = threadIdx.x < kEndsBefore ? shared.ends[num_listed + threadIdx.x] : 0;
      __syncthreads();
      if (threadIdx.x < kEndsBefore) shared.ends[threadIdx.x] = end;
    }
  }
  if (threadIdx.x == 0) shared.ends[kEndsBefore] = paste.height * paste.width;
  __syncthreads();
  return encode_runs(shared, num_runs, 1, string, room, length);
}

// Dynamic shared memory: the segments, then the mask's cells where they fit.
size_t dynamic_bytes(const Arguments& in) {
  const int cells = in.mask_height * in.mask_width;
  return (max_segments(in.mask_height) + 1) * sizeof(Segment) + (cells <= kMaxSharedCells ? cells : 0) * sizeof(float);
}

// images: those of a launch, from `first_image` on.
__global__ void __launch_bounds__(kThreads, kMinBlocks) encode_detections(const __grid_constant__ Arguments in,
                                                              const __grid_constant__ Images images,
                                                              int32_t first_image) {
  extern __shared__ Segment segments[];
  __shared__ BlockShared shared;
  const int image_index = static_cast<int>(blockIdx.x) / in.max_dets;
  const int32_t det_index = static_cast<int>(blockIdx.x) % in.max_dets;
  const int64_t index = static_cast<int64_t>(first_image + image_index) * in.max_dets + det_index;
  const float* det = in.dets + index * 5;
  if (det_index >= in.num_dets[first_image + image_index] || !(det[4] >= in.min_score)) {
    if (threadIdx.x == 0) {
      in.offsets[index] = 0;
      in.lengths[index] = 0;
    }
    return;
  }
  const TargetImage image = images.images[image_index];
  const int cells = in.mask_height * in.mask_width;
  Paste paste{in.masks + index * cells, in.mask_height, in.mask_width, in.threshold, paste_box(det, image),
              image.height, image.width, false, {}, nullptr, 0};
  paste.continues = paste.box.rows.begin == 0 && paste.box.rows.end == image.height;
  paste.last_row = paste.row_at(paste.box.rows.end - 1);
  if (cells <= kMaxSharedCells) {
    float* copy = reinterpret_cast<float*>(segments + max_segments(in.mask_height) + 1);
    for (int i = threadIdx.x; i < cells; i += kThreads) copy[i] = paste.mask[i];
    paste.mask = copy;
  }
  make_segments(paste, segments);
  const int64_t length = encode(shared, paste, shared.string, kStringBytes);
  if (threadIdx.x == 0) {
    const auto start = static_cast<int64_t>(
        atomicAdd(reinterpret_cast<unsigned long long*>(in.used), static_cast<unsigned long long>(length)));
    shared.start = start + length <= in.capacity ? start : -1;
    in.offsets[index] = shared.start;
    in.lengths[index] = static_cast<int32_t>(length);
  }
  __syncthreads();
  if (shared.start < 0) return;
  uint8_t* string = in.strings + shared.start;
  if (length > kStringBytes) {
    encode(shared, paste, string, length);
    return;
  }
  for (int i = threadIdx.x; i < length; i += kThreads) string[i] = shared.string[i];
}

bool is_valid(const Arguments& in) {
  if (in.batch < 0 || in.max_dets < 0 || in.capacity < 0) return false;
  if (static_cast<int64_t>(kMaxImages) * in.max_dets > INT32_MAX) return false;
  if (in.mask_height < 1 || in.mask_height > kMaxMaskCells || in.mask_width < 1 || in.mask_width > kMaxMaskCells) {
    return false;
  }
  return std::all_of(in.images, in.images + in.batch, [](const TargetImage& image) { return is_valid(image); });
}

}  // namespace

cudaError_t launch_encode_masks(const Arguments& in, cudaStream_t stream) {
  if (!is_valid(in)) return cudaErrorInvalidValue;
  const cudaError_t error = cudaMemsetAsync(in.used, 0, sizeof(*in.used), stream);
  if (error != cudaSuccess || in.max_dets == 0) return error;
  for (int32_t first = 0; first < in.batch; first += kMaxImages) {
    const int32_t count = in.batch - first < kMaxImages ? in.batch - first : kMaxImages;
    Images images{};
    for (int32_t i = 0; i < count; ++i) images.images[i] = in.images[first + i];
    encode_detections<<<count * in.max_dets, kThreads, dynamic_bytes(in), stream>>>(in, images, first);
  }
  return cudaGetLastError();
}

}  // namespace maskrcnn
