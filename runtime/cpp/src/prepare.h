// Images -> the network's input, bit for bit as runtime/host/preprocess.py makes it.
#pragma once

#include <vector>

#include "metadata.h"

namespace maskrcnn {

// Where the images of a batch lie in the network's input.
struct Geometry {
  std::vector<Size> originals;
  std::vector<Size> contents;  // inside the padding
  Size padded;
};

// Refuses what is no image that the model takes. name: "images[0]".
void check_image(const Image& image, const std::string& name, const Metadata& metadata);

// kInvalid: an image does not fit.
Geometry geometry_of(const Image* images, std::size_t num_images, const Metadata& metadata);

// (channels, 256): the normalised value of every value of a pixel.
std::vector<float> normalisation_tables(const Metadata& metadata);

// Writes one image into (channels, padded height, padded width), which has the pad value beforehand.
void prepare(const Image& image, const Metadata& metadata, const std::vector<float>& tables, const Size& padded,
             float* out);

}  // namespace maskrcnn
