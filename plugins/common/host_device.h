// Marks the functions that both a CUDA kernel and the CPU reference call. Without nvcc the macro is empty, so the
// headers that use it build with any C++17 compiler.
#pragma once

#if defined(__CUDACC__)
#define MASKRCNN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MASKRCNN_HOST_DEVICE inline
#endif

namespace maskrcnn {

// A product that the GPU's compiler does not fuse with the sum it goes into. Where a last bit decides (an overlap just
// at the threshold, a sample just inside the map), results then equal the CPU's, which is built without contraction.
MASKRCNN_HOST_DEVICE float unfused_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

MASKRCNN_HOST_DEVICE double unfused_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

}  // namespace maskrcnn
