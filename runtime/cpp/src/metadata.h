// What an exported model says about itself: runtime/metadata.py's JSON, of format 1 and 2.
#pragma once

#include <string>
#include <vector>

#include "maskrcnn/detector.h"
#include "steps.h"

namespace maskrcnn {

// Of files that say so: runtime/ranges.py and runtime/metadata.py.
constexpr int kMaxSize = 1 << 16;
constexpr int kMaxRows = 1 << 20;
constexpr int kMaxBatch = 1024;
constexpr std::size_t kMaxChannels = 4;

enum class MaskMode { kCrop, kFull, kGrid, kNone };

struct Metadata {
  ModelInfo info;
  Steps steps;
  std::vector<double> mean, std;  // per channel of the network's input
  bool is_rgb = true;             // the first and the third channel are exchanged
  double pad_value = 0;
  double mask_threshold = 0.5;
  MaskMode mask_mode = MaskMode::kCrop;
  std::string input = "float32";  // what the network takes: "float32", or pixels, "uint8" or "uint8_nhwc"
  bool clip = false;              // boxes are cut to the image
  bool loads_float = false;       // the steps work on float32
  bool loads_grey = false;        // images have one channel
  bool loads_unchanged = false;   // images have the channels of their files

  bool has_size() const { return info.height > 0; }
  Size size() const { return {info.height, info.width}; }
};

// place: what the text is from, as messages begin. kInvalid: it is no such JSON, or asks for what is not repeated here.
Metadata metadata_from_json(const std::string& text, const std::string& place);

// mmdet's sizes, and where images lie in the network's input.
// kInvalid: the model's size is fixed and the image does not fit into it.
Size network_size(const Size& image, const Metadata& metadata);
// Of a batch of images of these sizes, padding included.
Size padded_size(const std::vector<Size>& sizes, const Metadata& metadata);

}  // namespace maskrcnn
