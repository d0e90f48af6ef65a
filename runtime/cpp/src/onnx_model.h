// What the backends that read ONNX files share.
#pragma once

#include <functional>
#include <string>

#include "onnx_file.h"
#include "outputs.h"

namespace maskrcnn {

constexpr int kMaxThreads = 1024;

// A file that keeps the contract, and what it says of itself; `info.backend` is still empty.
struct OnnxModel {
  OnnxFile file;
  Metadata metadata;
};

// kInvalid: no ONNX, or none of ours; names the file.
OnnxModel read_model(const std::string& path);

void check_range(const char* name, int value, int least, int most);

// Makes a batch's input: images (B, channels, padded height, padded width), and image_sizes (B, 2).
void fill_inputs(const Image* images, const Geometry& geometry, const Metadata& metadata,
                 const std::vector<float>& tables, std::vector<float>& values, std::vector<float>& image_sizes);

// Returns an output's data by its name: of NumPy's type `dtype`, or kFailed. Writes its shape.
using Fetch = std::function<const void*(const std::string& name, const char* dtype, std::vector<std::int64_t>& shape)>;

// The outputs of a run, their shapes checked.
Outputs outputs_of(const Metadata& metadata, const Geometry& geometry, const Fetch& fetch);

}  // namespace maskrcnn
