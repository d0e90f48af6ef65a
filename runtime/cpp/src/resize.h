// cv2.resize(INTER_LINEAR) of uint8 images, with the arithmetic of plugins/prepare_images/prepare_images_math.h.
#pragma once

#include <cstdint>
#include <vector>

#include "canvas.h"

namespace maskrcnn {

// Returns (size.height, size.width, channels) without gaps.
std::vector<std::uint8_t> resized(const View<std::uint8_t>& image, const Size& size);

}  // namespace maskrcnn
