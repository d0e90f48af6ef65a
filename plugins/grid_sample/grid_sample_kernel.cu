// grid_sample on the GPU: one thread per output pixel and run of channels. The taps of an axis are found once.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "plugins/grid_sample/grid_sample_kernel.h"
#include "plugins/grid_sample/grid_sample_math.h"

namespace maskrcnn {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 16;  // per thread
constexpr int kMaxGridX = 0x7fffffff;
constexpr int kMaxGridY = 65535;

using Arguments = GridSampleArguments;

// The pixels of one axis that a position is a blend of. Those outside the map are not read.
template <int kTaps>
struct Taps {
  int64_t pixel[kTaps];
  float weight[kTaps];
  bool inside[kTaps];
};

template <int kTaps>
__device__ void set_tap(Taps<kTaps>& taps, int number, float pixel, float weight, int64_t size) {
  taps.pixel[number] = static_cast<int64_t>(pixel);
  taps.weight[number] = weight;
  taps.inside[number] = taps.pixel[number] >= 0 && taps.pixel[number] < size;
}

// kTaps is 1 (nearest), 2 (bilinear) or 4 (bicubic). coordinate: from -1 to 1.
template <int kTaps>
__device__ Taps<kTaps> find_taps(float coordinate, int64_t size, Padding padding, bool align_corners) {
  Taps<kTaps> taps;
  float position = grid_position(coordinate, size, align_corners);
  if constexpr (kTaps == 4) {
    // Bicubic pads each pixel, the others the position.
    const float floored = floorf(position);
    float weights[4];
    cubic_weights(position - floored, weights);
    for (int i = 0; i < 4; ++i) {
      set_tap(taps, i, padded_position(floored - 1.f + static_cast<float>(i), size, padding, align_corners), weights[i],
              size);
    }
    return taps;
  }
  position = padded_position(position, size, padding, align_corners);
  if constexpr (kTaps == 1) {
    set_tap(taps, 0, nearbyintf(position), 1.f, size);
  } else {
    const float floored = floorf(position);
    set_tap(taps, 0, floored, floored + 1.f - position, size);
    set_tap(taps, 1, floored + 1.f, position - floored, size);
  }
  return taps;
}

template <typename T, int kTaps>
__device__ float sample_plane(const T* plane, const Taps<kTaps>& y, const Taps<kTaps>& x, int64_t width) {
  float sum = 0.f;
  for (int i = 0; i < kTaps; ++i) {
    const T* row = plane + y.pixel[i] * width;
    for (int j = 0; j < kTaps; ++j) {
      if (y.inside[i] && x.inside[j]) sum += static_cast<float>(row[x.pixel[j]]) * (y.weight[i] * x.weight[j]);
    }
  }
  return sum;
}

template <typename T, int kTaps>
__global__ void __launch_bounds__(kThreads) sample_grid(const __grid_constant__ Arguments in) {
  const int64_t out_pixels = in.out_size[0] * in.out_size[1] * in.out_size[2];
  const int64_t plane_size = in.in_size[1] * in.in_size[2];
  const int64_t volume = in.in_size[0] * plane_size;
  const T* grid = static_cast<const T*>(in.grid);
  const bool deep = in.num_spatial == 3;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < in.batch * out_pixels;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t image = i / out_pixels;
    const int64_t pixel = i % out_pixels;
    const T* at = grid + i * in.num_spatial;
    const Taps<kTaps> x =
        find_taps<kTaps>(static_cast<float>(at[0]), in.in_size[2], in.padding, in.align_corners);
    const Taps<kTaps> y =
        find_taps<kTaps>(static_cast<float>(at[1]), in.in_size[1], in.padding, in.align_corners);
    Taps<kTaps> z{};
    z.weight[0] = 1.f;
    z.inside[0] = true;
    if (deep) z = find_taps<kTaps>(static_cast<float>(at[2]), in.in_size[0], in.padding, in.align_corners);
    for (int64_t run = static_cast<int64_t>(blockIdx.y) * kChannels; run < in.channels;
         run += static_cast<int64_t>(gridDim.y) * kChannels) {
      for (int64_t c = run; c < min(run + kChannels, in.channels); ++c) {
        const T* input = static_cast<const T*>(in.input) + (image * in.channels + c) * volume;
        float sum = 0.f;
        for (int k = 0; k < kTaps; ++k) {
          if (z.inside[k]) sum += z.weight[k] * sample_plane<T>(input + z.pixel[k] * plane_size, y, x, in.in_size[2]);
        }
        static_cast<T*>(in.output)[(image * in.channels + c) * out_pixels + pixel] = static_cast<T>(sum);
      }
    }
  }
}

template <typename T>
void launch_typed(const Arguments& in, cudaStream_t stream) {
  const int64_t pixels = in.batch * in.out_size[0] * in.out_size[1] * in.out_size[2];
  const int64_t x = (pixels + kThreads - 1) / kThreads;
  const int64_t y = (in.channels + kChannels - 1) / kChannels;
  const dim3 blocks(static_cast<unsigned>(x < kMaxGridX ? x : kMaxGridX),
                    static_cast<unsigned>(y < kMaxGridY ? y : kMaxGridY));
  if (in.interpolation == Interpolation::kNearest) sample_grid<T, 1><<<blocks, kThreads, 0, stream>>>(in);
  if (in.interpolation == Interpolation::kBilinear) sample_grid<T, 2><<<blocks, kThreads, 0, stream>>>(in);
  if (in.interpolation == Interpolation::kBicubic) sample_grid<T, 4><<<blocks, kThreads, 0, stream>>>(in);
}

bool is_valid(const Arguments& in) {
  if (in.num_spatial != 2 && in.num_spatial != 3) return false;
  if (in.num_spatial == 2 && (in.in_size[0] != 1 || in.out_size[0] != 1)) return false;
  if (in.num_spatial == 3 && in.interpolation == Interpolation::kBicubic) return false;
  for (int i = 0; i < 3; ++i) {
    if (in.in_size[i] < 1 || in.in_size[i] > INT32_MAX || in.out_size[i] < 0) return false;
  }
  const bool type = in.type == ElementType::kFloat || in.type == ElementType::kHalf;
  return type && in.batch >= 0 && in.channels >= 0;
}

}  // namespace

cudaError_t launch_grid_sample(const GridSampleArguments& in, cudaStream_t stream) {
  if (!is_valid(in)) return cudaErrorInvalidValue;
  if (in.batch == 0 || in.channels == 0) return cudaSuccess;
  if (in.out_size[0] == 0 || in.out_size[1] == 0 || in.out_size[2] == 0) return cudaSuccess;
  if (in.type == ElementType::kHalf) {
    launch_typed<__half>(in, stream);
  } else {
    launch_typed<float>(in, stream);
  }
  return cudaGetLastError();
}

}  // namespace maskrcnn
