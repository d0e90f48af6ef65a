// Images into the network's input on the CPU: the loops around prepare_images_math.h.
#pragma once

#include <cstdint>
#include <vector>

#include "plugins/common/parallel_for.h"
#include "plugins/prepare_images/prepare_images_math.h"

namespace maskrcnn {

struct PrepareImagesInput {
  struct Image {
    const uint8_t* pixels;  // (height, width, 3)
    int height;
    int width;
    int resized_height;
    int resized_width;
  };
  std::vector<Image> images;
  int height;  // of the output
  int width;
  const float* tables;  // (3, 256)
  bool reverse_channels;
};

// output: the image's (3, height, width), the pad value beforehand.
inline void prepare_row(const PrepareImagesInput& in, const PrepareImagesInput::Image& image, int y, float* output) {
  const ResizeTap row = row_tap(y, resize_scale(image.height, image.resized_height), image.height);
  const double scale = resize_scale(image.width, image.resized_width);
  const uint8_t* low = image.pixels + static_cast<int64_t>(row.low) * image.width * 3;
  const uint8_t* high = image.pixels + static_cast<int64_t>(row.high) * image.width * 3;
  for (int x = 0; x < image.resized_width; ++x) {
    const ResizeTap column = column_tap(x, scale, image.width);
    for (int channel = 0; channel < 3; ++channel) {
      const int from = in.reverse_channels ? 2 - channel : channel;
      const auto in_row = [&](const uint8_t* pixels) {
        return blended_columns(pixels[column.low * 3 + from], pixels[column.high * 3 + from], column);
      };
      const int value = blended_rows(in_row(low), in_row(high), row);
      output[(static_cast<int64_t>(channel) * in.height + y) * in.width + x] = in.tables[channel * kTableSize + value];
    }
  }
}

// output: (batch, 3, height, width), the pad value beforehand.
inline void prepare_images(const PrepareImagesInput& in, float* output) {
  const int64_t size = static_cast<int64_t>(3) * in.height * in.width;
  parallel_for(static_cast<int64_t>(in.images.size()) * in.height, [&](int64_t task) {
    const auto& image = in.images[static_cast<size_t>(task / in.height)];
    const int y = static_cast<int>(task % in.height);
    if (y < image.resized_height) prepare_row(in, image, y, output + task / in.height * size);
  });
}

}  // namespace maskrcnn
