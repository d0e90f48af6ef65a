// PaddedSpaceToDepth on the GPU: a thread makes one block of pixels, all channels. It moves memory and nothing else, so
// that what counts is whole sectors: neighbouring threads read neighbouring pairs of pixels, and a warp puts its blocks
// side by side in shared memory before it writes them to channels-last memory.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "plugins/common/strides.h"
#include "plugins/padded_space_to_depth/padded_space_to_depth_kernel.h"

namespace maskrcnn {
namespace {

constexpr int kBlock = 2;  // pixels, on each side
constexpr int kPixels = kBlock * kBlock;
constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr int kMaxGridX = 0x7fffffff;
constexpr int kMaxGridYZ = 65535;
constexpr int kPackBytes = 16;
constexpr int kMaxChannels = 4;  // in registers

using Arguments = PaddedSpaceToDepthArguments;

template <typename T>
struct alignas(kBlock * sizeof(T)) Pair {
  T values[kBlock];
};

template <typename T>
struct alignas(kPackBytes) Pack {
  static constexpr int kSize = kPackBytes / sizeof(T);
  T values[kSize];
};

__host__ __device__ int64_t rows_of_blocks(const Arguments& in) { return (in.top + in.height + in.bottom) / kBlock; }
__host__ __device__ int64_t columns_of_blocks(const Arguments& in) { return (in.left + in.width + in.right) / kBlock; }

// Pixels of a padded image. `plane` is one channel of it.
template <typename T>
__device__ T pixel_or_zero(const T* plane, int64_t y, int64_t x, const Arguments& in) {
  const bool inside = y >= 0 && y < in.height && x >= 0 && x < in.width;
  return inside ? plane[y * in.width + x] : T(0.f);
}

// The pixels of a block whose first one is (y, x), in the order of the output's channels: by row in the block, column
// in the block, channel. kPairs: the two pixels of a row are both inside the image or both outside, and aligned.
template <typename T, int kChannels, bool kPairs>
__device__ void read_block(const T* image, int64_t y, int64_t x, const Arguments& in,
                           T (&values)[kPixels * kChannels]) {
  const int64_t plane = in.height * in.width;
  if constexpr (kPairs) {
#pragma unroll
    for (int row = 0; row < kBlock; ++row) {
      const bool inside = y + row >= 0 && y + row < in.height && x >= 0 && x < in.width;
      const T* first = image + (y + row) * in.width + x;
#pragma unroll
      for (int channel = 0; channel < kChannels; ++channel) {
        Pair<T> pair{};
        if (inside) pair = *reinterpret_cast<const Pair<T>*>(first + channel * plane);
#pragma unroll
        for (int column = 0; column < kBlock; ++column) {
          values[(row * kBlock + column) * kChannels + channel] = pair.values[column];
        }
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPixels * kChannels; ++i) {
      const int pixel = i / kChannels;
      values[i] = pixel_or_zero(image + i % kChannels * plane, y + pixel / kBlock, x + pixel % kBlock, in);
    }
  }
}

// Channels last, and those of a block fill whole packs: kPacks of them, the channels that pad the layout included.
template <typename In, typename Out, int kChannels, bool kPairs>
__global__ void __launch_bounds__(kThreads) write_packs(const __grid_constant__ Arguments in) {
  constexpr int kSize = Pack<Out>::kSize;
  constexpr int kPacks = (kPixels * kChannels + kSize - 1) / kSize;
  __shared__ Pack<Out> shared[kThreads * kPacks];
  const int lane = threadIdx.x % kWarp;
  Pack<Out>* staged = shared + (threadIdx.x - lane) * kPacks;
  const int64_t rows = rows_of_blocks(in);
  const int64_t columns = columns_of_blocks(in);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x - lane;  // the warp's first column
  const int64_t x = (begin + lane) * kBlock - in.left;
  const int64_t num_staged = (columns - begin < kWarp ? columns - begin : kWarp) * kPacks;
  for (int64_t index = blockIdx.z; index < in.batch; index += gridDim.z) {
    const In* image = static_cast<const In*>(in.images) + index * kChannels * in.height * in.width;
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
      In values[kPixels * kChannels];
      read_block<In, kChannels, kPairs>(image, row * kBlock - in.top, x, in, values);
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        Pack<Out> pack{};
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          if (i * kSize + j < kPixels * kChannels) {
            pack.values[j] = static_cast<Out>(static_cast<float>(values[i * kSize + j]));
          }
        }
        staged[lane * kPacks + i] = pack;
      }
      __syncwarp();
      Pack<Out>* blocks = static_cast<Pack<Out>*>(in.blocks) + ((index * rows + row) * columns + begin) * kPacks;
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        const int pack = i * kWarp + lane;
        if (pack < num_staged) blocks[pack] = staged[pack];
      }
      __syncwarp();
    }
  }
}

// Any number of channels, any layout.
template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads) write_elements(const __grid_constant__ Arguments in) {
  const int64_t rows = rows_of_blocks(in);
  const int64_t columns = columns_of_blocks(in);
  const int64_t plane = in.height * in.width;
  const int64_t channels = kPixels * in.channels;
  const int64_t stored = stored_channels(channels, in.blocks_layout);
  const Strides strides = strides_of(channels, rows, columns, in.blocks_layout);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= columns) return;
  for (int64_t index = blockIdx.z; index < in.batch; index += gridDim.z) {
    const In* image = static_cast<const In*>(in.images) + index * in.channels * plane;
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
      Out* block = static_cast<Out*>(in.blocks) + index * strides.image + row * strides.row + column * strides.column;
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        const int64_t y = row * kBlock - in.top + pixel / kBlock;
        const int64_t x = column * kBlock - in.left + pixel % kBlock;
        for (int64_t channel = 0; channel < in.channels; ++channel) {
          const float value = static_cast<float>(pixel_or_zero(image + channel * plane, y, x, in));
          block[(pixel * in.channels + channel) * strides.channel] = static_cast<Out>(value);
        }
      }
      for (int64_t channel = channels; channel < stored; ++channel) block[channel * strides.channel] = Out(0.f);
    }
  }
}

template <typename T>
constexpr TensorLayout packed_layout() {
  return sizeof(T) == sizeof(float) ? TensorLayout::kNhwc : TensorLayout::kNhwc8;
}

bool is_aligned(const void* data, size_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

template <typename In, typename Out, int kChannels>
void launch_packs(const Arguments& in, dim3 grid, cudaStream_t stream) {
  if (in.left % kBlock == 0 && in.width % kBlock == 0 && is_aligned(in.images, kBlock * sizeof(In))) {
    write_packs<In, Out, kChannels, true><<<grid, kThreads, 0, stream>>>(in);
  } else {
    write_packs<In, Out, kChannels, false><<<grid, kThreads, 0, stream>>>(in);
  }
}

template <typename In, typename Out>
void launch_typed(const Arguments& in, cudaStream_t stream) {
  const int64_t rows = rows_of_blocks(in);
  const int64_t x = (columns_of_blocks(in) + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(x), static_cast<unsigned>(rows < kMaxGridYZ ? rows : kMaxGridYZ),
                  static_cast<unsigned>(in.batch < kMaxGridYZ ? in.batch : kMaxGridYZ));
  const bool packs = in.blocks_layout == packed_layout<Out>() && is_aligned(in.blocks, kPackBytes);
  if (!packs || in.channels > kMaxChannels) {
    write_elements<In, Out><<<grid, kThreads, 0, stream>>>(in);
  } else if (in.channels == 1) {
    launch_packs<In, Out, 1>(in, grid, stream);
  } else if (in.channels == 2) {
    launch_packs<In, Out, 2>(in, grid, stream);
  } else if (in.channels == 3) {
    launch_packs<In, Out, 3>(in, grid, stream);
  } else {
    launch_packs<In, Out, kMaxChannels>(in, grid, stream);
  }
}

bool is_floating(ElementType type) { return type == ElementType::kFloat || type == ElementType::kHalf; }

bool is_valid(const Arguments& in) {
  for (const int64_t size : {in.batch, in.channels, in.height, in.width, in.top, in.left, in.bottom, in.right}) {
    if (size < 0 || size > kMaxGridX) return false;
  }
  const bool whole = (in.top + in.height + in.bottom) % kBlock == 0 && (in.left + in.width + in.right) % kBlock == 0;
  const bool has_layout = in.blocks_layout != TensorLayout::kNchw32;
  return whole && has_layout && is_floating(in.images_type) && is_floating(in.blocks_type);
}

}  // namespace

cudaError_t launch_padded_space_to_depth(const Arguments& in, cudaStream_t stream) {
  if (!is_valid(in)) return cudaErrorInvalidValue;
  if (in.batch == 0 || in.channels == 0 || rows_of_blocks(in) == 0 || columns_of_blocks(in) == 0) return cudaSuccess;
  const bool half_in = in.images_type == ElementType::kHalf;
  const bool half_out = in.blocks_type == ElementType::kHalf;
  if (half_in && half_out) launch_typed<__half, __half>(in, stream);
  if (half_in && !half_out) launch_typed<__half, float>(in, stream);
  if (!half_in && half_out) launch_typed<float, __half>(in, stream);
  if (!half_in && !half_out) launch_typed<float, float>(in, stream);
  return cudaGetLastError();
}

}  // namespace maskrcnn
