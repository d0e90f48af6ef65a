// Images into the network's input on the GPU: resize, normalise, pad, in one pass.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace maskrcnn {

// One image as decoded.
struct SourceImage {
  const uint8_t* pixels;  // (height, width, 3) BGR, rows row_stride bytes apart
  int64_t row_stride;     // >= 3 * width
  int32_t height;         // px, 1 to 2^20
  int32_t width;          // likewise
  int32_t resized_height;  // px inside the padded output, 1 to its height
  int32_t resized_width;   // likewise
};

struct PrepareImagesArguments {
  const SourceImage* images;  // host memory, read before the call returns
  int32_t batch;              // >= 0
  int32_t height;             // of the output, 1 to 2^20
  int32_t width;              // likewise
  const float* tables;        // (3, 256): the normalised value of each value of a pixel, per output channel
  int32_t reverse_channels;   // 1: output channel 0 is the image's channel 2, RGB
  float pad_value;            // of the output outside an image
  float* output;              // (batch, 3, height, width)
};

// One launch for every 32 images; needs no workspace. Writes every element of the output. Images
// are passed by value: a captured CUDA graph reads the same addresses, in the same sizes, every time.
// Returns cudaErrorInvalidValue where an argument is out of range.
cudaError_t launch_prepare_images(const PrepareImagesArguments& arguments, cudaStream_t stream);

}  // namespace maskrcnn
