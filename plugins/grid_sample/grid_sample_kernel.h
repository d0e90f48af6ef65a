// torch's grid_sample on the GPU, for graphs with mmcv 1.x's `grid_sampler`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "plugins/common/tensor_types.h"

namespace maskrcnn {

// The numbers are those of mmcv's attributes and of torch's aten::grid_sampler.
enum class Interpolation { kBilinear = 0, kNearest = 1, kBicubic = 2 };
enum class Padding { kZeros = 0, kBorder = 1, kReflection = 2 };

// 4-D: input (batch, channels, height, width), grid (batch, out_height, out_width, 2).
// 5-D: a depth before the height in both, and 3 coordinates; bilinear (trilinear) and nearest only.
struct GridSampleArguments {
  const void* input;
  const void* grid;  // [x, y(, z)] from -1 to 1
  void* output;      // (batch, channels(, out_depth), out_height, out_width)
  ElementType type;  // of input, grid and output: kFloat or kHalf
  int num_spatial;   // 2 or 3
  int64_t batch;
  int64_t channels;
  int64_t in_size[3];   // depth (1 where num_spatial is 2), height, width; >= 1
  int64_t out_size[3];  // likewise; 0 launches nothing
  Interpolation interpolation;
  Padding padding;
  bool align_corners;
};

// One launch; needs no workspace. Returns cudaErrorInvalidValue where an argument is out of range.
cudaError_t launch_grid_sample(const GridSampleArguments& arguments, cudaStream_t stream);

}  // namespace maskrcnn
