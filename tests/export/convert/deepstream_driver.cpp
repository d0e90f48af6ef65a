// Calls the parser with outputs as nvinfer has them, and checks what it makes of them.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "nvdsinfer_custom_impl.h"

extern "C" bool NvDsInferParseCustomMaskRCNN(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&,
                                             NvDsInferParseDetectionParams const&,
                                             std::vector<NvDsInferInstanceMaskInfo>&);
extern "C" bool NvDsInferParseCustomMaskRCNNBoxes(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&,
                                                  NvDsInferParseDetectionParams const&,
                                                  std::vector<NvDsInferObjectDetectionInfo>&);

namespace {

int num_checks = 0;

void check(bool holds, const char* what) {
  ++num_checks;
  if (holds) return;
  std::printf("failed: %s\n", what);
  std::exit(1);
}

NvDsInferLayerInfo layer(const char* name, NvDsInferDataType type, std::vector<unsigned int> dims, void* buffer) {
  NvDsInferLayerInfo info{};
  info.dataType = type;
  info.inferDims.numDims = static_cast<unsigned int>(dims.size());
  info.inferDims.numElements = 1;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    info.inferDims.d[i] = dims[i];
    info.inferDims.numElements *= dims[i];
  }
  info.layerName = name;
  info.buffer = buffer;
  return info;
}

}  // namespace

int main() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::int32_t num = 5;
  // Good, below its class's threshold, a class that there is not, NaN, beyond the image; the sixth is past the count.
  std::vector<float> dets = {10, 20, 30, 60,  0.9F, 1, 1, 9, 9, 0.3F, 1, 1,   9,   9,   0.9F,
                             1,  1,  9,  nan, nan,  90, 40, 130, 70, 0.8F, 2, 2, 8, 8, 0.99F};
  std::vector<std::int32_t> labels = {1, 0, 7, 1, 1, 1};
  std::vector<float> masks(6 * 2 * 3);
  for (std::size_t i = 0; i < masks.size(); ++i) masks[i] = static_cast<float>(i);
  std::vector<NvDsInferLayerInfo> layers = {layer("num_dets", INT32, {1}, &num), layer("dets", FLOAT, {6, 5}, dets.data()),
                                            layer("labels", INT32, {6}, labels.data()),
                                            layer("masks", FLOAT, {6, 2, 3}, masks.data())};
  NvDsInferNetworkInfo network{100, 80, 3};
  NvDsInferParseDetectionParams params{};
  params.numClassesConfigured = 2;
  params.perClassPreclusterThreshold = {0.5F, 0.25F};
  std::vector<NvDsInferInstanceMaskInfo> objects;
  check(NvDsInferParseCustomMaskRCNN(layers, network, params, objects), "it parses");
  check(objects.size() == 2, "two objects");
  check(objects[0].classId == 1 && objects[0].detectionConfidence == 0.9F, "class and score");
  check(objects[0].left == 10 && objects[0].top == 20 && objects[0].width == 20 && objects[0].height == 40, "box");
  check(objects[0].mask_width == 3 && objects[0].mask_height == 2 && objects[0].mask_size == 24, "mask size");
  check(objects[0].mask[0] == 0 && objects[0].mask[5] == 5, "mask of the first row");
  check(objects[1].mask[0] == 24, "mask of the fifth row");
  check(objects[1].left == 90 && objects[1].width == 10 && objects[1].height == 30, "cut to the image");
  for (NvDsInferInstanceMaskInfo& object : objects) delete[] object.mask;
  std::vector<NvDsInferObjectDetectionInfo> boxes;
  layers.pop_back();
  check(NvDsInferParseCustomMaskRCNNBoxes(layers, network, params, boxes) && boxes.size() == 2, "boxes alone");
  check(!NvDsInferParseCustomMaskRCNN(layers, network, params, objects), "no masks is refused");
  num = -3;
  boxes.clear();
  check(NvDsInferParseCustomMaskRCNNBoxes(layers, network, params, boxes) && boxes.empty(), "a count below zero");
  layers[1].inferDims.d[1] = 4;
  check(!NvDsInferParseCustomMaskRCNNBoxes(layers, network, params, boxes), "rows of another length");
  std::printf("%d checks\n", num_checks);
}
