// Marks the functions that both a CUDA kernel and the CPU reference call. Without nvcc the macro is empty, so the
// headers that use it build with any C++17 compiler.
#pragma once

#if defined(__CUDACC__)
#define MASKRCNN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MASKRCNN_HOST_DEVICE inline
#endif
