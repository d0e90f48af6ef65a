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
constexpr int kBlocksPerMultiprocessor = 8;  // the most, at 256 threads: loads wait for each other otherwise
constexpr int kMaxImages = 32;               // per launch: with them the parameters stay below 4 KB

struct Image {
  const uint8_t* pixels;
  const uint8_t* end;  // behind the last pixel
  int64_t row_stride;
  int height, width, resized_height, resized_width;
  double scale_y, scale_x;
};

struct Batch {
  Image images[kMaxImages];
  int height, width, column_tiles;
  const float* tables;
  bool reverse_channels;
  float* output;  // of images[0]
};

// Two pixels: bytes 0 to 2 and 3 to 5.
struct PixelPair {
  uint32_t bytes0, bytes4;

  __device__ int channel_of_low(int channel) const { return byte(channel); }
  __device__ int channel_of_high(int channel) const { return byte(3 + channel); }
  __device__ int byte(int i) const { return static_cast<int>((i < 4 ? bytes0 >> (8 * i) : bytes4 >> (8 * i - 32)) & 0xff); }
};

__device__ PixelPair load_pair(const Image& image, const uint8_t* row, const ResizeTap& column) {
  const uint8_t* low = row + column.low * 3;
  const int misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(low) & 3);
  const uint8_t* aligned = low - misaligned;
  // What lies behind the pixel at the right border has weight 0, and may be anything that is part of the image.
  if (aligned >= image.pixels && aligned + 12 <= image.end) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(aligned);
    const uint32_t word0 = __ldg(words), word1 = __ldg(words + 1), word2 = __ldg(words + 2);
    return {__funnelshift_r(word0, word1, 8 * misaligned), __funnelshift_r(word1, word2, 8 * misaligned)};
  }
  const uint8_t* high = row + column.high * 3;
  const auto byte = [](const uint8_t* address) { return static_cast<uint32_t>(__ldg(address)); };
  return {byte(low) | byte(low + 1) << 8 | byte(low + 2) << 16 | byte(high) << 24, byte(high + 1) | byte(high + 2) << 8};
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) prepare_tiles(const __grid_constant__ Batch in) {
  __shared__ float tables[3][kTableSize];  // in the order of the image's channels
  __shared__ ResizeTap rows[kTileRows];
  const Image& image = in.images[blockIdx.y];
  const int tile_row = static_cast<int>(blockIdx.x) / in.column_tiles * kTileRows;
  const int x = static_cast<int>(blockIdx.x) % in.column_tiles * kTileColumns + static_cast<int>(threadIdx.x);
  const int thread = static_cast<int>(threadIdx.y) * kTileColumns + static_cast<int>(threadIdx.x);
  for (int i = thread; i < kTableSize; i += kThreads) {
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
      tables[channel][i] = __ldg(in.tables + (in.reverse_channels ? 2 - channel : channel) * kTableSize + i);
    }
  }
  // Outside the image, what its last row and column have: nothing there is read.
  if (thread < kTileRows) {
    rows[thread] = row_tap(min(tile_row + thread, image.resized_height - 1), image.scale_y, image.height);
  }
  __syncthreads();
  if (x >= in.width) return;
  const ResizeTap column = column_tap(min(x, image.resized_width - 1), image.scale_x, image.width);
  const int64_t plane = static_cast<int64_t>(in.height) * in.width;
  const int64_t channel_stride = in.reverse_channels ? -plane : plane;
  float* output = in.output + (blockIdx.y * 3 + (in.reverse_channels ? 2 : 0)) * plane + x;
  const int num_rows = min(kTileRows, in.height - tile_row);
  const int num_inside = x < image.resized_width ? min(num_rows, image.resized_height - tile_row) : 0;
  for (int i = threadIdx.y; i < num_rows; i += kRowThreads) {
    float values[3] = {0.f, 0.f, 0.f};
    if (i < num_inside) {
      const ResizeTap row = rows[i];
      const PixelPair low = load_pair(image, image.pixels + row.low * image.row_stride, column);
      const PixelPair high = load_pair(image, image.pixels + row.high * image.row_stride, column);
#pragma unroll
      for (int channel = 0; channel < 3; ++channel) {
        const int blended_low = blended_columns(low.channel_of_low(channel), low.channel_of_high(channel), column);
        const int blended_high = blended_columns(high.channel_of_low(channel), high.channel_of_high(channel), column);
        values[channel] = tables[channel][blended_rows(blended_low, blended_high, row)];
      }
    }
    float* pixel = output + static_cast<int64_t>(tile_row + i) * in.width;
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
  const uint8_t* end = in.pixels + (in.height - 1) * in.row_stride + static_cast<int64_t>(in.width) * 3;
  return {in.pixels, end, in.row_stride, in.height, in.width, in.resized_height, in.resized_width,
          resize_scale(in.height, in.resized_height), resize_scale(in.width, in.resized_width)};
}

}  // namespace

cudaError_t launch_prepare_images(const PrepareImagesArguments& in, cudaStream_t stream) {
  if (!is_valid(in)) return cudaErrorInvalidValue;
  Batch batch{};
  batch.height = in.height;
  batch.width = in.width;
  batch.column_tiles = (in.width + kTileColumns - 1) / kTileColumns;
  batch.tables = in.tables;
  batch.reverse_channels = in.reverse_channels != 0;
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
