// Image files for the examples: PPM always, JPEG and PNG where stb_image was found. Any decoder does; each makes other
// pixels of a JPEG in the last bit, and the model was trained with OpenCV's or Pillow's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Pixels {
  int height = 0;
  int width = 0;
  std::vector<std::uint8_t> bgr;  // (height, width, 3)
};

// Returns whether it was read; else why not is in `problem`.
bool read_image(const std::string& path, Pixels& image, std::string& problem);
