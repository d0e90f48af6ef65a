// SelectMasks on the GPU. A block writes a mask, or a part of a large one. In a channels-last layout the logit of every
// pixel is in a sector of memory of its own: several are in flight per thread.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "plugins/common/sigmoid.h"
#include "plugins/select_masks/select_masks_kernel.h"
#include "plugins/select_masks/select_masks_math.h"

namespace maskrcnn {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxGridX = 0x7fffffff;
constexpr int kMaxGridY = 65535;

using Arguments = SelectMasksArguments;

template <int kPixels>
struct alignas(sizeof(float) * kPixels) Pack {
  float values[kPixels];
};

// kPixels: neighbours, written in one store; they divide num_pixels.
template <typename T, int kPixels>
__global__ void __launch_bounds__(kThreads) select_masks(const __grid_constant__ Arguments in) {
  const int64_t begin = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kPixels;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kThreads * kPixels;
  for (int64_t index = blockIdx.x; index < in.num_masks; index += gridDim.x) {
    const int64_t channel = mask_channel(in.labels[index], in.channels);
    const bool exists = channel != kNoMask;
    const MaskLogits at = mask_logits(index, exists ? channel : 0, in.channels, in.num_pixels, in.logits_layout);
    const T* logits = static_cast<const T*>(in.logits) + at.first;
    float* mask = in.masks + index * in.num_pixels;
    for (int64_t pixel = begin; pixel < in.num_pixels; pixel += step) {
      Pack<kPixels> pack{};
      if (exists) {
#pragma unroll
        for (int i = 0; i < kPixels; ++i) pack.values[i] = static_cast<float>(__ldg(logits + (pixel + i) * at.step));
#pragma unroll
        for (int i = 0; i < kPixels; ++i) pack.values[i] = sigmoid(pack.values[i]);
      }
      *reinterpret_cast<Pack<kPixels>*>(mask + pixel) = pack;
    }
  }
}

template <typename T, int kPixels>
void launch_pixels(const Arguments& in, cudaStream_t stream) {
  constexpr int64_t kPerBlock = kThreads * kPixels;
  const int64_t parts = in.num_pixels / kPerBlock + (in.num_pixels % kPerBlock != 0);
  const dim3 blocks(static_cast<unsigned>(in.num_masks < kMaxGridX ? in.num_masks : kMaxGridX),
                    static_cast<unsigned>(parts < kMaxGridY ? parts : kMaxGridY));
  select_masks<T, kPixels><<<blocks, kThreads, 0, stream>>>(in);
}

template <typename T>
void launch_typed(const Arguments& in, cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(float);
  if (in.num_pixels % kVector == 0 && reinterpret_cast<uintptr_t>(in.masks) % 16 == 0) {
    launch_pixels<T, kVector>(in, stream);
  } else {
    launch_pixels<T, 1>(in, stream);
  }
}

bool is_valid(const Arguments& in) {
  const bool type = in.logits_type == ElementType::kFloat || in.logits_type == ElementType::kHalf;
  return type && in.num_masks >= 0 && in.channels >= 1 && in.num_pixels >= 0;
}

}  // namespace

cudaError_t launch_select_masks(const SelectMasksArguments& in, cudaStream_t stream) {
  if (!is_valid(in)) return cudaErrorInvalidValue;
  if (in.num_masks == 0 || in.num_pixels == 0) return cudaSuccess;
  if (in.logits_type == ElementType::kHalf) {
    launch_typed<__half>(in, stream);
  } else {
    launch_typed<float>(in, stream);
  }
  return cudaGetLastError();
}

}  // namespace maskrcnn
