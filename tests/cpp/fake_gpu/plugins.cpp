// The plugin library's functions of images, without a GPU: of an image its first byte goes through the network, and of
// a mask its first value, of which the string has as many characters as it says.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "cudart.h"
#include "plugins/encode_masks/encode_masks_kernel.h"
#include "plugins/prepare_images/prepare_images_kernel.h"

using maskrcnn::EncodeMasksArguments;
using maskrcnn::PrepareImagesArguments;
using maskrcnn::SourceImage;
using maskrcnn::TargetImage;

namespace {

void prepare(const PrepareImagesArguments& arguments, const std::vector<SourceImage>& images) {
  const auto values = static_cast<std::int64_t>(3) * arguments.height * arguments.width;
  for (std::size_t i = 0; i < images.size(); ++i) {
    const SourceImage& image = images[i];
    const std::uint8_t* last = image.pixels + image.row_stride * (image.height - 1) + 3 * image.width - 1;
    float* output = arguments.output + values * static_cast<std::int64_t>(i);
    std::fill_n(output, values, arguments.tables[*last]);
    *output = *image.pixels;
  }
}

void encode(const EncodeMasksArguments& arguments, std::size_t batch) {
  std::int64_t used = 0;
  const std::int64_t cells = static_cast<std::int64_t>(arguments.mask_height) * arguments.mask_width;
  // The last image first: strings come in any order.
  for (std::size_t i = batch; i-- > 0;) {
    for (int row = 0; row < arguments.max_dets; ++row) {
      const auto index = static_cast<std::int64_t>(i) * arguments.max_dets + row;
      const bool is_there = row < arguments.num_dets[i];
      const int length = is_there ? static_cast<int>(arguments.masks[index * cells]) : 0;
      arguments.lengths[index] = length;
      const bool fits = used + length <= arguments.capacity;
      arguments.offsets[index] = fits ? used : -1;
      if (fits) std::memset(arguments.strings + used, 'a' + row, static_cast<std::size_t>(length));
      used += length;
    }
  }
  *arguments.used = used;
}

}  // namespace

extern "C" {

int32_t maskrcnn_images_abi() { return 3; }
const char* maskrcnn_error_string(int) { return "an error"; }
size_t maskrcnn_arguments_size(const char* name) {
  const std::string text = name;
  return text == "PrepareImagesArguments" ? sizeof(PrepareImagesArguments)
         : text == "SourceImage"          ? sizeof(SourceImage)
         : text == "TargetImage"          ? sizeof(TargetImage)
                                          : sizeof(EncodeMasksArguments);
}

int maskrcnn_prepare_images(const PrepareImagesArguments* given, void* stream) {
  const std::vector<SourceImage> images(given->images, given->images + given->batch);
  fake_cuda_enqueue(static_cast<cudaStream_t>(stream), [arguments = *given, images] { prepare(arguments, images); });
  return 0;
}

int maskrcnn_encode_masks(const EncodeMasksArguments* given, void* stream) {
  const auto batch = static_cast<std::size_t>(given->batch);
  fake_cuda_enqueue(static_cast<cudaStream_t>(stream), [arguments = *given, batch] { encode(arguments, batch); });
  return 0;
}

}  // extern "C"
