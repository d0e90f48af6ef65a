// Masks as TensorRT 8 puts them out, float32, into uint8 on the GPU. A thread casts four values at a time: 16 bytes in,
// four bytes out, the threads of a warp side by side.
#include <cuda_runtime.h>

#include "plugins/cast_masks/cast_masks_kernel.h"
#include "plugins/cast_masks/cast_masks_math.h"

namespace maskrcnn {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;
constexpr int64_t kMaxGridX = 0x7fffffff;

// The first num_vectors * kVector values by vectors, the others one by one.
__global__ void __launch_bounds__(kThreads) cast_values(const __grid_constant__ CastMasksArguments in,
                                                        int64_t num_vectors) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first; i < num_vectors; i += step) {
    const float4 values = __ldg(reinterpret_cast<const float4*>(in.values) + i);
    reinterpret_cast<uchar4*>(in.output)[i] = make_uchar4(byte_from_float(values.x), byte_from_float(values.y),
                                                          byte_from_float(values.z), byte_from_float(values.w));
  }
  for (int64_t i = num_vectors * kVector + first; i < in.num_values; i += step) {
    in.output[i] = byte_from_float(in.values[i]);
  }
}

bool is_aligned(const void* address, size_t bytes) { return reinterpret_cast<uintptr_t>(address) % bytes == 0; }

}  // namespace

cudaError_t launch_cast_masks(const CastMasksArguments& in, cudaStream_t stream) {
  if (in.num_values < 0) return cudaErrorInvalidValue;
  if (in.num_values == 0) return cudaSuccess;
  const bool by_vectors = is_aligned(in.values, sizeof(float4)) && is_aligned(in.output, sizeof(uchar4));
  const int64_t num_vectors = by_vectors ? in.num_values / kVector : 0;
  const int64_t num_items = by_vectors ? num_vectors : in.num_values;
  const int64_t blocks = (num_items + kThreads - 1) / kThreads;
  const int64_t grid = blocks < 1 ? 1 : (blocks < kMaxGridX ? blocks : kMaxGridX);
  cast_values<<<static_cast<unsigned>(grid), kThreads, 0, stream>>>(in, num_vectors);
  return cudaGetLastError();
}

}  // namespace maskrcnn
