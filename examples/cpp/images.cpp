#include "images.h"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <utility>

#if defined(MASKRCNN_HAS_STB)
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#include <stb/stb_image.h>
#endif

namespace {

constexpr int kMostEdge = 1 << 15;

// The next number of a PPM's header; -1 where there is none.
int header_number(const std::string& data, std::size_t& place) {
  while (place < data.size() && (std::isspace(static_cast<unsigned char>(data[place])) || data[place] == '#')) {
    if (data[place] == '#') {
      place = std::min(data.find('\n', place), data.size());
    } else {
      ++place;
    }
  }
  int number = -1;
  for (; place < data.size() && data[place] >= '0' && data[place] <= '9' && number < kMostEdge; ++place) {
    number = (number < 0 ? 0 : number * 10) + (data[place] - '0');
  }
  return number;
}

bool read_ppm(const std::string& data, Pixels& image, std::string& problem) {
  std::size_t place = 2;
  image.width = header_number(data, place);
  image.height = header_number(data, place);
  const int most = header_number(data, place);
  ++place;
  const bool in_range = image.width > 0 && image.height > 0 && image.width <= kMostEdge && image.height <= kMostEdge;
  const std::size_t num_bytes = in_range ? static_cast<std::size_t>(image.width) * image.height * 3 : 0;
  if (!in_range || most != 255 || place > data.size() || data.size() - place < num_bytes) {
    problem = "expected a binary PPM (P6) of 8 bits, found a damaged one or another";
    return false;
  }
  image.bgr.assign(data.begin() + static_cast<std::ptrdiff_t>(place),
                   data.begin() + static_cast<std::ptrdiff_t>(place + num_bytes));
  return true;
}

#if defined(MASKRCNN_HAS_STB)
bool read_other(const std::string& data, Pixels& image, std::string& problem) {
  int channels = 0;
  stbi_uc* pixels = stbi_load_from_memory(reinterpret_cast<const stbi_uc*>(data.data()), static_cast<int>(data.size()),
                                          &image.width, &image.height, &channels, 3);
  if (pixels == nullptr) {
    problem = std::string("expected a JPEG, PNG or PPM, found something else (") + stbi_failure_reason() + ")";
    return false;
  }
  image.bgr.assign(pixels, pixels + static_cast<std::size_t>(image.width) * image.height * 3);
  stbi_image_free(pixels);
  return true;
}
#else
bool read_other(const std::string&, Pixels&, std::string& problem) {
  problem = "expected a PPM, found another file; install libstb-dev and build again for JPEG and PNG";
  return false;
}
#endif

// Returns whether it was read; else why not is in `problem`.
bool read_image(const std::string& path, Pixels& image, std::string& problem) {
  std::ifstream file(path, std::ios::binary);
  const bool is_open = file.is_open();
  std::string data;
  // By read, which takes what a folder throws for the end; an iterator does not.
  std::vector<char> block(1 << 16);
  while (is_open && (file.read(block.data(), static_cast<std::streamsize>(block.size())) || file.gcount() > 0)) {
    data.append(block.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (!is_open || file.bad()) {
    problem = "expected a file that can be read, found none";
    return false;
  }
  const bool is_ppm = data.rfind("P6", 0) == 0;
  if (is_ppm ? !read_ppm(data, image, problem) : !read_other(data, image, problem)) return false;
  // Files have red first.
  for (std::size_t i = 0; i + 2 < image.bgr.size(); i += 3) std::swap(image.bgr[i], image.bgr[i + 2]);
  return true;
}

}  // namespace

std::string read_images(const std::vector<std::string>& paths, std::vector<Pixels>& pixels,
                        std::vector<maskrcnn::Image>& images) {
  pixels.assign(paths.size(), {});
  images.assign(paths.size(), {});
  for (std::size_t i = 0; i < paths.size(); ++i) {
    std::string problem;
    if (!read_image(paths[i], pixels[i], problem)) return paths[i] + ": " + problem;
    images[i].pixels = pixels[i].bgr.data();
    images[i].height = pixels[i].height;
    images[i].width = pixels[i].width;
  }
  return "";
}
