// A prefix sum over the threads of a block. CUDA only.
#pragma once

#include <cuda_runtime.h>

namespace maskrcnn {

// The sum of `value` over the threads before this one; block_total: over all. All threads of the block call it, full
// warps of them. totals: shared memory, one int per warp.
static __device__ int exclusive_block_sum(int value, int* totals, int num_warps, int& block_total) {
  constexpr int kLanes = 32;
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  int inclusive = value;
  for (int step = 1; step < kLanes; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  if (lane == kLanes - 1) totals[warp] = inclusive;
  __syncthreads();
  int before = 0;
  block_total = 0;
  for (int w = 0; w < num_warps; ++w) {
    if (w == warp) before = block_total;
    block_total += totals[w];
  }
  __syncthreads();
  return before + inclusive - value;
}

}  // namespace maskrcnn
