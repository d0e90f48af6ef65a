#include "contract.h"

#include <algorithm>
#include <set>

#include "errors.h"

namespace maskrcnn {
namespace {

constexpr const char* kRemedy = "; export it with this version of `python -m export.maskrcnn`";

std::string names_of(const std::vector<TensorSpec>& tensors) {
  std::string out;
  for (const TensorSpec& tensor : tensors) out += (out.empty() ? "" : ", ") + tensor.name;
  return out.empty() ? "none" : out;
}

std::set<std::string> name_set(const std::vector<TensorSpec>& tensors) {
  std::set<std::string> out;
  for (const TensorSpec& tensor : tensors) out.insert(tensor.name);
  return out;
}

bool shapes_agree(const std::vector<std::int64_t>& expected, const std::vector<std::int64_t>& found) {
  const auto agree = [](std::int64_t a, std::int64_t b) { return a == kFree || b == kFree || a == b; };
  return expected.size() == found.size() && std::equal(expected.begin(), expected.end(), found.begin(), agree);
}

std::int64_t edge(int length) { return length > 0 ? length : kFree; }

}  // namespace

std::string described(const TensorSpec& tensor) {
  std::string sizes;
  for (const std::int64_t size : tensor.shape) {
    sizes += (sizes.empty() ? "" : ", ") + (size == kFree ? std::string("?") : std::to_string(size));
  }
  return tensor.dtype + " (" + sizes + ")";
}

std::vector<TensorSpec> contract_inputs(const Metadata& metadata) {
  const ModelInfo& info = metadata.info;
  return {{"images", "float32", {kFree, info.channels, edge(info.height), edge(info.width)}},
          {"image_sizes", "float32", {kFree, 2}}};
}

std::vector<TensorSpec> contract_outputs(const Metadata& metadata) {
  const ModelInfo& info = metadata.info;
  const std::int64_t rows = info.max_detections;
  std::vector<TensorSpec> outputs = {
      {"num_dets", "int32", {kFree}}, {"dets", "float32", {kFree, rows, 5}}, {"labels", "int32", {kFree, rows}}};
  if (!info.keypoints.empty()) {
    outputs.push_back({"keypoints", "float32", {kFree, rows, static_cast<std::int64_t>(info.keypoints.size()), 3}});
  }
  if (metadata.mask_mode == MaskMode::kCrop || metadata.mask_mode == MaskMode::kGrid) {
    outputs.push_back({"masks", "float32", {kFree, rows, kFree, kFree}});
  }
  if (metadata.mask_mode == MaskMode::kFull) {
    outputs.push_back({"masks", "uint8", {kFree, rows, edge(info.height), edge(info.width)}});
  }
  return outputs;
}

void check_contract(const std::string& place, const std::string& kind, const std::vector<TensorSpec>& expected,
                    const std::vector<TensorSpec>& found) {
  if (name_set(expected) != name_set(found)) {
    invalid(place, ": expected the ", kind, "s ", names_of(expected), ", found ", names_of(found), kRemedy);
  }
  for (const TensorSpec& tensor : expected) {
    const TensorSpec& other =
        *std::find_if(found.begin(), found.end(), [&](const TensorSpec& t) { return t.name == tensor.name; });
    const bool fixed_batch = other.shape.empty() || other.shape[0] != kFree;
    if (tensor.dtype != other.dtype || !shapes_agree(tensor.shape, other.shape) || fixed_batch) {
      invalid(place, ": ", kind, " ", tensor.name, ": expected ", described(tensor),
              fixed_batch ? " with a dynamic batch" : "", ", found ", described(other), kRemedy);
    }
  }
}

}  // namespace maskrcnn
