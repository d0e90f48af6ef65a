// Image files for the examples: PPM always, JPEG and PNG where stb_image was found. Any decoder does; each makes other
// pixels of a JPEG in the last bit, and the model was trained with OpenCV's or Pillow's.
#pragma once

#include <maskrcnn/detector.h>

#include <cstdint>
#include <string>
#include <vector>

struct Pixels {
  int height = 0;
  int width = 0;
  std::vector<std::uint8_t> bgr;  // (height, width, 3)
};

// Reads files into `pixels`; `images` are what a detector takes of them, and point there. Returns why one could not be
// read, with its name; empty where all were.
std::string read_images(const std::vector<std::string>& paths, std::vector<Pixels>& pixels,
                        std::vector<maskrcnn::Image>& images);
