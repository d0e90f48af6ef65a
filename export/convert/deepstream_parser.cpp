// What nvinfer calls with the outputs of a model of this project: num_dets (1) int32, dets (K, 5) float32 x1 y1 x2 y2 score
// in px of the network's input, labels (K) int32, and masks (K, m, m) float32, each a box's probabilities.
//
//   parse-bbox-instance-mask-func-name=NvDsInferParseCustomMaskRCNN   network-type=3
//   parse-bbox-func-name=NvDsInferParseCustomMaskRCNNBoxes            network-type=0, a model without masks
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "nvdsinfer_custom_impl.h"

namespace {

using Layers = std::vector<NvDsInferLayerInfo>;

const NvDsInferLayerInfo* layer_named(const Layers& layers, const char* name, NvDsInferDataType type) {
  for (const NvDsInferLayerInfo& layer : layers) {
    if (layer.layerName == nullptr || std::strcmp(layer.layerName, name) != 0) continue;
    if (layer.dataType == type && layer.buffer != nullptr) return &layer;
    std::fprintf(stderr, "maskrcnn parser: output %s: expected data of type %d, found type %d\n", name,
                 static_cast<int>(type), static_cast<int>(layer.dataType));
    return nullptr;
  }
  std::fprintf(stderr, "maskrcnn parser: expected an output %s, found none; convert the model again\n", name);
  return nullptr;
}

struct Rows {
  int num = 0;
  const float* dets = nullptr;
  const std::int32_t* labels = nullptr;
};

bool find_rows(const Layers& layers, Rows& rows) {
  const NvDsInferLayerInfo* const counts = layer_named(layers, "num_dets", INT32);
  const NvDsInferLayerInfo* const dets = layer_named(layers, "dets", FLOAT);
  const NvDsInferLayerInfo* const labels = layer_named(layers, "labels", INT32);
  if (counts == nullptr || dets == nullptr || labels == nullptr) return false;
  const NvDsInferDims& dims = dets->inferDims;
  if (dims.numDims != 2 || dims.d[1] != 5 || labels->inferDims.numElements < dims.d[0]) {
    std::fprintf(stderr, "maskrcnn parser: output dets: expected K rows of 5, found another shape\n");
    return false;
  }
  const int most = static_cast<int>(dims.d[0]);
  rows.num = std::clamp(*static_cast<const std::int32_t*>(counts->buffer), 0, most);
  rows.dets = static_cast<const float*>(dets->buffer);
  rows.labels = static_cast<const std::int32_t*>(labels->buffer);
  return true;
}

// Fills what both kinds of object have in common. False: no object, or one below the threshold of its class.
template <typename Object>
bool fill(const Rows& rows, int row, const NvDsInferNetworkInfo& network, const NvDsInferParseDetectionParams& params,
          Object& object) {
  const float* const det = rows.dets + static_cast<std::size_t>(row) * 5;
  const std::int32_t label = rows.labels[row];
  const std::vector<float>& thresholds = params.perClassPreclusterThreshold;
  if (label < 0 || static_cast<unsigned int>(label) >= params.numClassesConfigured) return false;
  const float threshold = static_cast<std::size_t>(label) < thresholds.size() ? thresholds[label] : 0.0F;
  if (!(det[4] >= threshold)) return false;  // NaN is no object
  const float right = static_cast<float>(network.width);
  const float bottom = static_cast<float>(network.height);
  const float x1 = std::clamp(det[0], 0.0F, right);
  const float y1 = std::clamp(det[1], 0.0F, bottom);
  const float x2 = std::clamp(det[2], 0.0F, right);
  const float y2 = std::clamp(det[3], 0.0F, bottom);
  if (!(x2 > x1) || !(y2 > y1)) return false;
  object.classId = static_cast<unsigned int>(label);
  object.detectionConfidence = std::min(det[4], 1.0F);
  object.left = x1;
  object.top = y1;
  object.width = x2 - x1;
  object.height = y2 - y1;
  return true;
}

}  // namespace

extern "C" bool NvDsInferParseCustomMaskRCNN(std::vector<NvDsInferLayerInfo> const& outputLayersInfo,
                                             NvDsInferNetworkInfo const& networkInfo,
                                             NvDsInferParseDetectionParams const& detectionParams,
                                             std::vector<NvDsInferInstanceMaskInfo>& objectList) {
  Rows rows;
  const NvDsInferLayerInfo* const masks = layer_named(outputLayersInfo, "masks", FLOAT);
  if (masks == nullptr || !find_rows(outputLayersInfo, rows)) return false;
  const NvDsInferDims& dims = masks->inferDims;
  if (dims.numDims != 3 || static_cast<int>(dims.d[0]) < rows.num) {
    std::fprintf(stderr, "maskrcnn parser: output masks: expected K masks of m x m, found another shape\n");
    return false;
  }
  const std::size_t num_pixels = static_cast<std::size_t>(dims.d[1]) * dims.d[2];
  for (int row = 0; row < rows.num; ++row) {
    NvDsInferInstanceMaskInfo object{};
    if (!fill(rows, row, networkInfo, detectionParams, object)) continue;
    object.mask_height = dims.d[1];
    object.mask_width = dims.d[2];
    object.mask_size = static_cast<unsigned int>(num_pixels * sizeof(float));
    object.mask = new float[num_pixels];  // nvinfer deletes it
    std::memcpy(object.mask, static_cast<const float*>(masks->buffer) + row * num_pixels, object.mask_size);
    objectList.push_back(object);
  }
  return true;
}

extern "C" bool NvDsInferParseCustomMaskRCNNBoxes(std::vector<NvDsInferLayerInfo> const& outputLayersInfo,
                                                  NvDsInferNetworkInfo const& networkInfo,
                                                  NvDsInferParseDetectionParams const& detectionParams,
                                                  std::vector<NvDsInferObjectDetectionInfo>& objectList) {
  Rows rows;
  if (!find_rows(outputLayersInfo, rows)) return false;
  for (int row = 0; row < rows.num; ++row) {
    NvDsInferObjectDetectionInfo object{};
    if (fill(rows, row, networkInfo, detectionParams, object)) objectList.push_back(object);
  }
  return true;
}

CHECK_CUSTOM_INSTANCE_MASK_PARSE_FUNC_PROTOTYPE(NvDsInferParseCustomMaskRCNN);
CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(NvDsInferParseCustomMaskRCNNBoxes);
