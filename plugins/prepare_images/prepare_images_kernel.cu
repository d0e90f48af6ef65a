// Images into the network's input on the GPU.
//
// A thread writes pixels of one column, a few rows apart: the column's two source pixels and their weights are found
// once. The threads of a warp are neighbouring pixels of a row, so that every store is a full line; the two source
// pixels, six bytes at any address, are three aligned words that the warp reads from a few lines. Normalisation is a
// look-up in shared memory.
#include <cuda_runtime.h>

#include "plugins/prepare_images/prepare_images_kernel.h"
#include "plugins/prepare_images/prepare_images_math.h"

namespace maskrcnn {
namespace {

constexpr int kTileColumns = 64;  // a thread each
constexpr int kTileRows = 32;
constexpr int kRowThreads = 4;
constexpr int kThreads = kTileColumns * kRowThreads;
static_assert(kThreads == kTableSize, "a thread loads a column of the tables");
constexpr int kMaxImages = 32;  // per launch: with them the parameters stay below 4 KB

struct Image {
  const uint8_t* pixels;
  int64_t row_stride;
  int height, width, resized_height, resized_width;
  double scale_y, scale_x;
};

struct Batch {
  Image images[kMaxImages];
  int height, width, column_tiles;
  const float* tables;
  bool reverse_channels;
  float pad_value;
  float* output;  // of images[0]
};

// What a row of the tile is blended from.
struct alignas(16) Row {
  const uint8_t* low;
  const uint8_t* high;
  ResizeTap tap;
};

// Two neighbouring pixels, channel by channel as __dp2a takes them: low and high of channel 0, then of channel 1; of
// channel 2.
struct PixelPair {
  uint32_t channels01, channel2;
};

// The aligned words around both pixels lie within the row, wherever it begins.
__device__ bool has_words(const ResizeTap& column, int width) { return column.low >= 1 && column.low + 4 <= width; }

__device__ PixelPair load_words(const uint8_t* low) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(low);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3});
  const uint32_t word0 = __ldg(words), word1 = __ldg(words + 1), word2 = __ldg(words + 2);
  const unsigned shift = static_cast<unsigned>(address) * 8;  // of which the hardware takes the remainder by 32
  const uint32_t bytes0 = __funnelshift_r(word0, word1, shift);
  const uint32_t bytes4 = __funnelshift_r(word1, word2, shift);
  return {__byte_perm(bytes0, bytes4, 0x4130), __byte_perm(bytes0, bytes4, 0x5252)};
}

__device__ PixelPair load_bytes(const uint8_t* low, const uint8_t* high) {
  const auto byte = [](const uint8_t* address) { return static_cast<uint32_t>(__ldg(address)); };
  return {byte(low) | byte(high) << 8 | byte(low + 1) << 16 | byte(high + 1) << 24, byte(low + 2) | byte(high + 2) << 8};
}

// blended_columns of each channel.
__device__ void blend_columns(const PixelPair& pair, uint32_t weights, int* blended) {
  blended[0] = static_cast<int>(__dp2a_lo(weights, pair.channels01, 0u) >> 4);
  blended[1] = static_cast<int>(__dp2a_hi(weights, pair.channels01, 0u) >> 4);
  blended[2] = static_cast<int>(__dp2a_lo(weights, pair.channel2, 0u) >> 4);
}

__global__ void __launch_bounds__(kThreads) prepare_tiles(const __grid_constant__ Batch in) {
  __shared__ float tables[3][kTableSize];  // in the order of the image's channels
  __shared__ Row rows[kTileRows];
  const Image& image = in.images[blockIdx.y];
  const int tile_row = static_cast<int>(blockIdx.x) / in.column_tiles * kTileRows;
  const int x = static_cast<int>(blockIdx.x) % in.column_tiles * kTileColumns + static_cast<int>(threadIdx.x);
  const int thread = static_cast<int>(threadIdx.y) * kTileColumns + static_cast<int>(threadIdx.x);
#pragma unroll
  for (int channel = 0; channel < 3; ++channel) {
    tables[channel][thread] = __ldg(in.tables + (in.reverse_channels ? 2 - channel : channel) * kTableSize + thread);
  }
  // Outside the image, what its last row and column have: nothing there is read.
  if (thread < kTileRows) {
    const ResizeTap tap = row_tap(min(tile_row + thread, image.resized_height - 1), image.scale_y, image.height);
    rows[thread] = {image.pixels + tap.low * image.row_stride, image.pixels + tap.high * image.row_stride, tap};
  }
  __syncthreads();
  if (x >= in.width) return;
  const ResizeTap column = column_tap(min(x, image.resized_width - 1), image.scale_x, image.width);
  const uint32_t weights = static_cast<uint32_t>(column.low_weight | column.high_weight << 16);
  const unsigned low = static_cast<unsigned>(column.low) * 3;
  const unsigned high = static_cast<unsigned>(column.high) * 3;
  const bool words = has_words(column, image.width);
  const int64_t plane = static_cast<int64_t>(in.height) * in.width;
  const int64_t channel_stride = in.reverse_channels ? -plane : plane;
  const int num_rows = min(kTileRows, in.height - tile_row);
  const int num_inside = x < image.resized_width ? min(num_rows, image.resized_height - tile_row) : 0;
  const int first = static_cast<int>(threadIdx.y);
  float* pixel = in.output + (blockIdx.y * 3 + (in.reverse_channels ? 2 : 0)) * plane +
                 static_cast<int64_t>(tile_row + first) * in.width + x;
  for (int i = first; i < num_rows; i += kRowThreads, pixel += static_cast<int64_t>(kRowThreads) * in.width) {
    float values[3] = {in.pad_value, in.pad_value, in.pad_value};
    if (i < num_inside) {
      const Row row = rows[i];
      PixelPair pairs[2];
      if (words) {
        pairs[0] = load_words(row.low + low);
        pairs[1] = load_words(row.high + low);
      } else {
        pairs[0] = load_bytes(row.low + low, row.low + high);
        pairs[1] = load_bytes(row.high + low, row.high + high);
      }
      int blended[2][3];
      for (int side = 0; side < 2; ++side) blend_columns(pairs[side], weights, blended[side]);
#pragma unroll
      for (int channel = 0; channel < 3; ++channel) {
        values[channel] = tables[channel][blended_rows(blended[0][channel], blended[1][channel], row.tap)];
      }
    }
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) pixel[channel * channel_stride] = values[channel];
  }
}

bool is_size(int size, int at_most) { return size >= 1 && size <= at_most; }

bool is_valid(const SourceImage& image, int height, int width) {
  return is_size(image.height, kMaxImageSize) && is_size(image.width, kMaxImageSize) &&
         is_size(image.resized_height, height) && is_size(image.resized_width, width) &&
         image.row_stride >= 3 * static_cast<int64_t>(image.width);
}

bool is_valid(const PrepareImagesArguments& in) {
  if (in.batch < 0 || !is_size(in.height, kMaxImageSize) || !is_size(in.width, kMaxImageSize)) return false;
  for (int i = 0; i < in.batch; ++i) {
    if (!is_valid(in.images[i], in.height, in.width)) return false;
  }
  return true;
}

Image image_from_source(const SourceImage& in) {
  return {in.pixels,
          in.row_stride,
          in.height,
          in.width,
          in.resized_height,
          in.resized_width,
          resize_scale(in.height, in.resized_height),
          resize_scale(in.width, in.resized_width)};
}

}  // namespace

cudaError_t launch_prepare_images(const PrepareImagesArguments& in, cudaStream_t stream) {
  if (!is_valid(in)) return cudaErrorInvalidValue;
  if (in.batch == 0) return cudaSuccess;
  Batch batch{};
  batch.height = in.height;
  batch.width = in.width;
  batch.column_tiles = (in.width + kTileColumns - 1) / kTileColumns;
  batch.tables = in.tables;
  batch.reverse_channels = in.reverse_channels != 0;
  batch.pad_value = in.pad_value;
  const int tiles = (in.height + kTileRows - 1) / kTileRows * batch.column_tiles;
  for (int first = 0; first < in.batch; first += kMaxImages) {
    const int num_images = in.batch - first < kMaxImages ? in.batch - first : kMaxImages;
    for (int i = 0; i < num_images; ++i) batch.images[i] = image_from_source(in.images[first + i]);
    batch.output = in.output + static_cast<int64_t>(first) * 3 * in.height * in.width;
    prepare_tiles<<<dim3(tiles, num_images), dim3(kTileColumns, kRowThreads), 0, stream>>>(batch);
  }
  return cudaGetLastError();
}

}  // namespace maskrcnn
