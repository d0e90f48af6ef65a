#include "onnx_model.h"

#include "errors.h"

namespace maskrcnn {

OnnxModel read_model(const std::string& path) {
  OnnxFile file = read_onnx(path);
  const auto text = file.properties.find("maskrcnn");
  if (text == file.properties.end()) {
    std::string keys;
    for (const auto& [key, value] : file.properties) keys += (keys.empty() ? "" : ", ") + key;
    invalid(
        "model ", path,
        ": expected the metadata key 'maskrcnn' that `python -m export.maskrcnn` and `python -m export.graft` write, "
        "found the keys: ",
        keys.empty() ? "none" : one_line(keys),
        "; export the checkpoint of a Mask R-CNN with `python -m export.maskrcnn`; of another finished detector, "
        "`python -m export.graft` makes such a file");
  }
  Metadata metadata = metadata_from_json(text->second, "model " + path + ": ");
  check_contract("model " + path, "input", contract_inputs(metadata), file.inputs);
  check_contract("model " + path, "output", contract_outputs(metadata), file.outputs);
  return {std::move(file), std::move(metadata)};
}

void check_range(const char* name, int value, int least, int most) {
  if (value < least || value > most) {
    invalid(name, ": expected a whole number from ", least, " to ", most, ", found ", value);
  }
}

void fill_inputs(const Image* images, const Geometry& geometry, const Metadata& metadata,
                 const std::vector<float>& tables, std::vector<float>& values, std::vector<float>& image_sizes) {
  const Size& padded = geometry.padded;
  const auto image_values = static_cast<std::size_t>(metadata.info.channels * padded.height * padded.width);
  values.assign(image_values * geometry.originals.size(), static_cast<float>(metadata.pad_value));
  image_sizes.clear();
  for (std::size_t i = 0; i < geometry.originals.size(); ++i) {
    prepare(images[i], metadata, tables, padded, values.data() + i * image_values);
    image_sizes.push_back(static_cast<float>(geometry.contents[i].height));
    image_sizes.push_back(static_cast<float>(geometry.contents[i].width));
  }
}

Outputs outputs_of(const Metadata& metadata, const Geometry& geometry, const Fetch& fetch) {
  const auto batch = static_cast<std::int64_t>(geometry.originals.size());
  const ModelInfo& info = metadata.info;
  const std::int64_t rows = info.max_detections;
  Outputs outputs;
  const auto fetched = [&](const char* name, const char* dtype, const std::vector<std::int64_t>& expected) {
    std::vector<std::int64_t> shape;
    const void* data = fetch(name, dtype, shape);
    check_shape(name, expected, shape);
    if (shape.size() == 4) outputs.cells = {shape[2], shape[3]};  // of the masks, which are asked for last
    return data;
  };
  outputs.num_dets = static_cast<const std::int32_t*>(fetched("num_dets", "int32", {batch}));
  outputs.dets = static_cast<const float*>(fetched("dets", "float32", {batch, rows, 5}));
  outputs.labels = static_cast<const std::int32_t*>(fetched("labels", "int32", {batch, rows}));
  if (!info.keypoints.empty()) {
    const auto count = static_cast<std::int64_t>(info.keypoints.size());
    outputs.keypoints = static_cast<const float*>(fetched("keypoints", "float32", {batch, rows, count, 3}));
    outputs.cells = {};
  }
  if (metadata.mask_mode == MaskMode::kFull) {
    outputs.pixels = static_cast<const std::uint8_t*>(
        fetched("masks", "uint8", {batch, rows, geometry.padded.height, geometry.padded.width}));
  } else if (metadata.mask_mode != MaskMode::kNone) {
    outputs.probabilities = static_cast<const float*>(fetched("masks", "float32", {batch, rows, kFree, kFree}));
  }
  return outputs;
}

}  // namespace maskrcnn
