#include "plugins/multi_level_roi_align/multi_level_roi_align_op.h"

#include <limits>

#include "plugins/multi_level_roi_align/multi_level_roi_align_kernel.h"

namespace maskrcnn {
namespace {

constexpr int kMaxBins = 32767;
constexpr float kMaxFloat = std::numeric_limits<float>::max();

struct RoiAlignSettings {
  int output_height;
  int output_width;
  std::vector<float> spatial_scales;
  int sampling_ratio;
  PoolMode mode;
  bool aligned;
  float finest_scale;
  float output_scale;  // 0: the output has the features' type; otherwise it is INT8, in steps of this
  std::vector<float> feature_scales;  // of every level where the features are INT8 as well; else none
};

// Both operators: they differ in their attributes and in which input holds the RoIs.
class RoiAlignOp : public Op {
 public:
  RoiAlignOp(const char* name, Attributes attributes, RoiAlignSettings settings, bool rois_first)
      : Op(std::move(attributes)), name_(name), settings_(std::move(settings)), rois_(rois_first ? 0 : num_levels()) {}

  int num_inputs() const override { return num_levels() + 1; }
  int num_outputs() const override { return 1; }

  void check_shapes(const TensorList& tensors) const override {
    expect_shape(name_, "rois", tensors.input(rois_), {kUnknown, 5});
    const TensorInfo& first = tensors.input(feature(0));
    for (int level = 0; level < num_levels(); ++level) {
      const TensorInfo& map = tensors.input(feature(level));
      expect_shape(name_, feature_name(level).c_str(), map, {kUnknown, kUnknown, kUnknown, kUnknown});
      expect_same_size(name_, "the batch of the feature maps", first.dims[0], map.dims[0]);
      expect_same_size(name_, "the channels of the feature maps", first.dims[1], map.dims[1]);
    }
  }

  void check_types(const DType* inputs) const override {
    expect_dtype(name_, "rois", inputs[rois_], {DType::kFloat, DType::kHalf});
    for (int level = 0; level < num_levels(); ++level) {
      const std::string name = feature_name(level);
      if (reads_int8()) {
        expect_dtype(name_, name.c_str(), inputs[feature(level)], {DType::kInt8});
      } else {
        expect_dtype(name_, name.c_str(), inputs[feature(level)], {DType::kFloat, DType::kHalf});
      }
    }
  }

  std::vector<Dim> output_shape(int, const TensorList&) const override {
    return {Dim::of(rois_, 0), Dim::of(feature(0), 1), Dim::fixed(settings_.output_height),
            Dim::fixed(settings_.output_width)};
  }

  DType output_type(int, const DType* inputs) const override {
    return is_quantized() ? DType::kInt8 : inputs[feature(0)];
  }

  // Features share a type and a layout. The output has their type, or is INT8; it may have another layout, so that
  // neither the convolutions before nor those after force a reformat on the other side.
  bool supports(int position, const TensorList& tensors) const override {
    const TensorInfo& tensor = tensors.items[position];
    if (position == rois_) return is_linear(tensor, DType::kFloat);
    if (position == tensors.num_inputs && is_quantized()) return is_int8_map(tensor);
    if (reads_int8() ? !is_int8_map(tensor) : !is_feature_map(tensor)) return false;
    const int first = feature(0);
    if (position == first) return true;
    const bool same_type = tensor.dtype == tensors.items[first].dtype;
    return same_type && (position == tensors.num_inputs || tensor.layout == tensors.items[first].layout);
  }

  size_t workspace_bytes(const TensorList&) const override { return 0; }

  cudaError_t enqueue(const TensorList& tensors, const void* const* inputs, void* const* outputs, void*,
                      cudaStream_t stream) const override {
    const TensorInfo& first = tensors.input(feature(0));
    const TensorInfo& output = tensors.output(0);
    MultiLevelRoiAlignArguments arguments{};
    for (int level = 0; level < num_levels(); ++level) {
      const TensorInfo& map = tensors.input(feature(level));
      arguments.levels[level] = {inputs[feature(level)], static_cast<int>(map.dims[2]), static_cast<int>(map.dims[3]),
                                 settings_.spatial_scales[static_cast<size_t>(level)],
                                 reads_int8() ? settings_.feature_scales[static_cast<size_t>(level)] : 0.f};
    }
    arguments.num_levels = num_levels();
    arguments.batch = first.dims[0];
    arguments.channels = first.dims[1];
    arguments.feature_type = element_type(first.dtype);
    arguments.feature_layout = tensor_layout(first.layout);
    arguments.rois = static_cast<const float*>(inputs[rois_]);
    arguments.num_rois = tensors.input(rois_).dims[0];
    arguments.output = outputs[0];
    arguments.output_type = element_type(output.dtype);
    arguments.output_layout = tensor_layout(output.layout);
    arguments.output_height = settings_.output_height;
    arguments.output_width = settings_.output_width;
    arguments.sampling_ratio = settings_.sampling_ratio;
    arguments.mode = settings_.mode;
    arguments.aligned = settings_.aligned;
    arguments.finest_scale = settings_.finest_scale;
    arguments.output_scale = settings_.output_scale;
    return launch_multi_level_roi_align(arguments, stream);
  }

 private:
  bool is_quantized() const { return settings_.output_scale > 0.f; }
  bool reads_int8() const { return !settings_.feature_scales.empty(); }
  int num_levels() const { return static_cast<int>(settings_.spatial_scales.size()); }
  int feature(int level) const { return rois_ == 0 ? level + 1 : level; }
  std::string feature_name(int level) const { return rois_ == 0 ? "feature_" + std::to_string(level) : "input"; }

  const char* name_;
  RoiAlignSettings settings_;
  int rois_;  // the RoIs' input
};

PoolMode pool_mode(const Attributes& attributes) {
  return attributes.choice("mode", {"avg", "max"}) == 0 ? PoolMode::kAvg : PoolMode::kMax;
}

std::shared_ptr<const Op> create_multi_level(Attributes a) {
  const RoiAlignSettings settings{
      a.integer("output_height", 1, kMaxBins),
      a.integer("output_width", 1, kMaxBins),
      a.numbers("spatial_scales", kMaxRoiAlignLevels),
      a.integer("sampling_ratio", -1, kMaxSamplesPerAxis),
      pool_mode(a),
      a.choice("coordinate_transformation_mode", {"half_pixel", "output_half_pixel"}) == 0,
      a.number("finest_scale", std::numeric_limits<float>::min(), kMaxFloat),
      a.number("output_scale", 0.f, kMaxFloat),
      a.is_empty("feature_scales") ? std::vector<float>{} : a.numbers("feature_scales", kMaxRoiAlignLevels),
  };
  const size_t num_scales = settings.feature_scales.size();
  expect(num_scales == 0 || (num_scales == settings.spatial_scales.size() && settings.output_scale > 0.f),
         "MultiLevelRoiAlign: attribute feature_scales: expected one number for each of spatial_scales, and "
         "output_scale above 0, found " +
             std::to_string(num_scales) + ". Correct the ONNX node");
  return std::make_shared<RoiAlignOp>("MultiLevelRoiAlign", std::move(a), settings, true);
}

std::shared_ptr<const Op> create_mmcv(Attributes a) {
  const RoiAlignSettings settings{
      a.integer("output_height", 1, kMaxBins),
      a.integer("output_width", 1, kMaxBins),
      a.numbers("spatial_scale", 1),
      a.integer("sampling_ratio", -1, kMaxSamplesPerAxis),
      pool_mode(a),
      a.flag("aligned"),
      1.f,  // not read: there is one level
      0.f,
      {},
  };
  return std::make_shared<RoiAlignOp>("MMCVRoiAlign", std::move(a), settings, false);
}

}  // namespace

OpType multi_level_roi_align_type() {
  return {"MultiLevelRoiAlign",
          {required_int("output_height"), required_int("output_width"), required_float("spatial_scales"),
           optional_float("finest_scale", 56.f), optional_int("sampling_ratio", 0), optional_string("mode", "avg"),
           optional_string("coordinate_transformation_mode", "half_pixel"), optional_float("output_scale", 0.f),
           optional_floats("feature_scales", {})},
          create_multi_level};
}

OpType mmcv_roi_align_type() {
  return {"MMCVRoiAlign",
          {required_int("output_height"), required_int("output_width"), optional_float("spatial_scale", 1.f),
           optional_int("sampling_ratio", 0), optional_string("mode", "avg"), optional_int("aligned", 1)},
          create_mmcv};
}

}  // namespace maskrcnn
