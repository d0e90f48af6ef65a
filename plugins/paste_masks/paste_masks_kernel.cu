// PasteMasks on the GPU.
//
// A block writes a tile of one image's rows. Outside the box it stores zeros and computes nothing. Inside, bilinear
// sampling is separable: the block blends the two mask rows that each pixel row lies between, once, and finds the two
// cells that each pixel column lies between, once; a pixel is then one blend of two cells in shared memory.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "plugins/paste_masks/paste_masks_kernel.h"
#include "plugins/paste_masks/paste_masks_math.h"

namespace maskrcnn {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxRows = 32;           // per tile
constexpr int kManyTiles = 8192;       // enough to fill the largest GPUs several times; fewer are made smaller
constexpr int kMaxColumns = 2048;      // per tile
constexpr int kMaxRowBytes = 24576;    // of blended mask rows; with the columns' 16 KB below 48 KB
constexpr int kMaxSize = 1 << 24;      // pixel coordinates stay exact in float32
constexpr int kMaxGridX = 0x7fffffff;

using Arguments = PasteMasksArguments;

struct Tiling {
  int rows, columns;  // of a full tile
  int64_t row_tiles, column_tiles;
};

// Between which cells of a blended row a pixel column lies: cells[first] and cells[first + 1].
struct Column {
  int first;
  float second_weight;
};

// A blended row begins with one cell of zeros and ends with two, the mask's surroundings: the latter two are for pixels
// that see nothing of the mask. Two cells of NaN follow, for pixels outside the box's range, which are 0 even where
// nothing of the mask is enough for the threshold.
constexpr int kPaddingCells = 5;
__host__ __device__ int padded_width(int mask_width) { return mask_width + kPaddingCells; }
__device__ int nothing_at(int mask_width) { return mask_width + 1; }
__device__ int outside_at(int mask_width) { return mask_width + 3; }

__device__ Column column_at(float position, int mask_width) {
  // Written so that NaN is outside.
  if (!(position > -1.f && position < static_cast<float>(mask_width))) return {nothing_at(mask_width), 0.f};
  const float floored = floorf(position);
  return {static_cast<int>(floored) + 1, position - floored};
}

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  T values[kVector];
};

template <typename In>
__device__ void blend_rows(float* blended, const Arguments& in, const In* mask, const float* box, int row_begin,
                           int row_end) {
  const int width = padded_width(in.mask_width);
  for (int i = threadIdx.x; i < (row_end - row_begin) * width; i += kThreads) {
    const int row = i / width;
    const int cell = i % width - 1;
    float value = cell + 1 >= outside_at(in.mask_width) ? NAN : 0.f;
    if (cell >= 0 && cell < in.mask_width) {
      const float position = mask_position(row_begin + row, box[1], box[3], in.mask_height);
      const MaskTap y = mask_tap(position, in.mask_height);
      const float low = static_cast<float>(mask[static_cast<int64_t>(y.low) * in.mask_width + cell]);
      const float high = static_cast<float>(mask[static_cast<int64_t>(y.high) * in.mask_width + cell]);
      // A cell outside the mask has weight 0, and no say even if its stand-in is NaN.
      value = (y.low_weight != 0.f ? low * y.low_weight : 0.f) + (y.high_weight != 0.f ? high * y.high_weight : 0.f);
    }
    blended[i] = value;
  }
}

// kVector pixels per store. Columns are kept in shared memory as [column % kVector][column / kVector], so that the
// threads of a warp, kVector columns apart, read neighbouring words.
template <typename In, typename Out, int kVector>
__global__ void __launch_bounds__(kThreads) paste_tiles(const __grid_constant__ Arguments in, Tiling tiling) {
  extern __shared__ float2 shared_memory[];
  Column* columns = reinterpret_cast<Column*>(shared_memory);
  float* blended = reinterpret_cast<float*>(columns + tiling.columns);
  const int vectors_per_tile = tiling.columns / kVector;
  const int64_t tiles_per_mask = tiling.row_tiles * tiling.column_tiles;
  for (int64_t item = blockIdx.x; item < in.num_masks * tiles_per_mask; item += gridDim.x) {
    const int64_t index = item / tiles_per_mask;
    const int64_t tile = item % tiles_per_mask;
    const int tile_row = static_cast<int>(tile / tiling.column_tiles) * tiling.rows;
    const int tile_column = static_cast<int>(tile % tiling.column_tiles) * tiling.columns;
    const int num_rows = min(tiling.rows, in.height - tile_row);
    const int num_vectors = min(tiling.columns, in.width - tile_column) / kVector;
    float box[4];
    for (int i = 0; i < 4; ++i) box[i] = in.boxes[index * 4 + i];
    const PixelRange rows = paste_range(box[1], box[3], in.height);
    const PixelRange range = paste_range(box[0], box[2], in.width);
    const int first_row = max(rows.begin, tile_row);
    const int last_row = min(rows.end, tile_row + num_rows);
    const int first_column = max(range.begin, tile_column);
    const int last_column = min(range.end, tile_column + num_vectors * kVector);
    const bool touched = first_row < last_row && first_column < last_column;
    if (touched) {
      __syncthreads();  // the tile before this one may still be read
      for (int column = threadIdx.x; column < num_vectors * kVector; column += kThreads) {
        const int px = tile_column + column;
        Column at{outside_at(in.mask_width), 0.f};
        if (px >= first_column && px < last_column) {
          at = column_at(mask_position(px, box[0], box[2], in.mask_width), in.mask_width);
        }
        columns[column % kVector * vectors_per_tile + column / kVector] = at;
      }
      const int64_t mask_size = static_cast<int64_t>(in.mask_height) * in.mask_width;
      blend_rows(blended, in, static_cast<const In*>(in.masks) + index * mask_size, box, first_row, last_row);
      __syncthreads();
    }
    Out* image = static_cast<Out*>(in.output) + index * in.height * in.width;
    const Out one = static_cast<Out>(1.f);
    const Out zero = static_cast<Out>(0.f);
    // Walks the tile without a division per step: kThreads vectors on are so many rows and so many vectors on.
    const int row_step = kThreads / num_vectors;
    const int vector_step = kThreads % num_vectors;
    int row = tile_row + static_cast<int>(threadIdx.x) / num_vectors;
    int vector = static_cast<int>(threadIdx.x) % num_vectors;
    for (; row < tile_row + num_rows; row += row_step, vector += vector_step) {
      if (vector >= num_vectors) {
        vector -= num_vectors;
        if (++row >= tile_row + num_rows) break;
      }
      const int px = tile_column + vector * kVector;
      Pack<Out, kVector> pack;
#pragma unroll
      for (int k = 0; k < kVector; ++k) pack.values[k] = zero;
      if (touched && row >= first_row && row < last_row && px < last_column && px + kVector > first_column) {
        const float* cells = blended + (row - first_row) * padded_width(in.mask_width);
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          const Column at = columns[k * vectors_per_tile + vector];
          const float value = cells[at.first] * (1.f - at.second_weight) + cells[at.first + 1] * at.second_weight;
          pack.values[k] = value >= in.threshold ? one : zero;
        }
      }
      *reinterpret_cast<Pack<Out, kVector>*>(image + static_cast<int64_t>(row) * in.width + px) = pack;
    }
  }
}

// Masks too wide for shared memory.
template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads) paste_pixels(const __grid_constant__ Arguments in) {
  const int64_t image_size = static_cast<int64_t>(in.height) * in.width;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < in.num_masks * image_size; i += step) {
    const int64_t index = i / image_size;
    const int row = static_cast<int>(i % image_size / in.width);
    const int px = static_cast<int>(i % in.width);
    const float* box = in.boxes + index * 4;
    const PixelRange rows = paste_range(box[1], box[3], in.height);
    const PixelRange columns = paste_range(box[0], box[2], in.width);
    bool set = false;
    if (row >= rows.begin && row < rows.end && px >= columns.begin && px < columns.end) {
      const MaskTap y = mask_tap(mask_position(row, box[1], box[3], in.mask_height), in.mask_height);
      const MaskTap x = mask_tap(mask_position(px, box[0], box[2], in.mask_width), in.mask_width);
      const int64_t mask_size = static_cast<int64_t>(in.mask_height) * in.mask_width;
      set = sample_mask(static_cast<const In*>(in.masks) + index * mask_size, in.mask_width, y, x) >= in.threshold;
    }
    static_cast<Out*>(in.output)[i] = static_cast<Out>(set ? 1.f : 0.f);
  }
}

unsigned grid_for(int64_t blocks) { return static_cast<unsigned>(blocks < kMaxGridX ? blocks : kMaxGridX); }

Tiling tiling_of(const Arguments& in, int vector) {
  Tiling out{};
  const int fitting = kMaxRowBytes / static_cast<int>(padded_width(in.mask_width) * sizeof(float));
  out.rows = fitting < kMaxRows ? fitting : kMaxRows;
  if (out.rows < 1) return out;
  out.column_tiles = (in.width + kMaxColumns - 1) / kMaxColumns;
  const int64_t columns = (in.width + out.column_tiles - 1) / out.column_tiles;
  out.columns = static_cast<int>((columns + vector - 1) / vector * vector);
  out.row_tiles = (in.height + out.rows - 1) / out.rows;
  if (out.rows == kMaxRows && in.num_masks * out.row_tiles * out.column_tiles < kManyTiles) {
    out.rows /= 2;
    out.row_tiles = (in.height + out.rows - 1) / out.rows;
  }
  return out;
}

template <typename In, typename Out, int kVector>
void launch_tiles(const Arguments& in, cudaStream_t stream) {
  const Tiling tiling = tiling_of(in, kVector);
  const size_t shared_bytes = tiling.columns * sizeof(Column) + tiling.rows * padded_width(in.mask_width) * sizeof(float);
  const int64_t tiles = in.num_masks * tiling.row_tiles * tiling.column_tiles;
  paste_tiles<In, Out, kVector><<<grid_for(tiles), kThreads, shared_bytes, stream>>>(in, tiling);
}

template <typename In, typename Out>
void launch_typed(const Arguments& in, cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(Out);
  // The largest mask width of which one blended row fits.
  if (in.mask_width > kMaxRowBytes / static_cast<int>(sizeof(float)) - kPaddingCells) {
    const int64_t pixels = in.num_masks * in.height * in.width;
    paste_pixels<In, Out><<<grid_for((pixels + kThreads - 1) / kThreads), kThreads, 0, stream>>>(in);
  } else if (in.width % kVector == 0 && reinterpret_cast<uintptr_t>(in.output) % 16 == 0) {
    launch_tiles<In, Out, kVector>(in, stream);
  } else {
    launch_tiles<In, Out, 1>(in, stream);
  }
}

template <typename Out>
void launch_output(const Arguments& in, cudaStream_t stream) {
  if (in.mask_type == ElementType::kHalf) {
    launch_typed<__half, Out>(in, stream);
  } else {
    launch_typed<float, Out>(in, stream);
  }
}

bool is_valid(const Arguments& in) {
  const bool sizes = in.num_masks >= 0 && in.mask_height >= 1 && in.mask_width >= 1 && in.height >= 0 &&
                     in.height <= kMaxSize && in.width >= 0 && in.width <= kMaxSize;
  return sizes && (in.mask_type == ElementType::kFloat || in.mask_type == ElementType::kHalf);
}

}  // namespace

cudaError_t launch_paste_masks(const PasteMasksArguments& in, cudaStream_t stream) {
  if (!is_valid(in)) return cudaErrorInvalidValue;
  if (in.num_masks == 0 || in.height == 0 || in.width == 0) return cudaSuccess;
  switch (in.output_type) {
    case ElementType::kFloat:
      launch_output<float>(in, stream);
      break;
    case ElementType::kHalf:
      launch_output<__half>(in, stream);
      break;
    default:  // 0 and 1 look the same as int8, uint8 and bool
      launch_output<uint8_t>(in, stream);
  }
  return cudaGetLastError();
}

}  // namespace maskrcnn
