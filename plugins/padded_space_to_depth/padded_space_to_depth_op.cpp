#include "plugins/padded_space_to_depth/padded_space_to_depth_op.h"

#include "plugins/padded_space_to_depth/padded_space_to_depth_kernel.h"

namespace maskrcnn {
namespace {

constexpr const char* kName = "PaddedSpaceToDepth";
constexpr int kBlock = 2;
constexpr int kMaxPad = 32767;

enum Input { kImages, kNumInputs };
enum Pad { kTop, kLeft, kBottom, kRight, kNumPads };

std::vector<int32_t> pads_from(const Attributes& attributes) {
  std::vector<int32_t> pads = attributes.integers("pads", kNumPads, 0, kMaxPad);
  expect(pads.size() == kNumPads, std::string(kName) +
                                      ": attribute pads: expected top, left, bottom and right, found " +
                                      std::to_string(pads.size()) + " integers. Correct the ONNX node");
  return pads;
}

class PaddedSpaceToDepthOp : public Op {
 public:
  explicit PaddedSpaceToDepthOp(Attributes attributes)
      : Op(std::move(attributes)), pads_(pads_from(this->attributes())) {
    this->attributes().integer("blocksize", kBlock, kBlock);
  }

  int num_inputs() const override { return kNumInputs; }
  int num_outputs() const override { return 1; }

  void check_shapes(const TensorList& tensors) const override {
    const TensorInfo& images = tensors.input(kImages);
    expect_shape(kName, "images", images, {kUnknown, kUnknown, kUnknown, kUnknown});
    for (const int axis : {2, 3}) {
      const int64_t size = images.dims[axis];
      expect(size == kUnknown || (size + added(axis)) % kBlock == 0,
             std::string(kName) + ": expected images of which height and width are even with the pads, found " +
                 shape_name(images) + " and " + std::to_string(added(axis)) + " added to the " +
                 (axis == 2 ? "height" : "width") + ". Correct the pads, or pad the images");
    }
  }

  void check_types(const DType* inputs) const override {
    expect_dtype(kName, "images", inputs[kImages], {DType::kFloat, DType::kHalf});
  }

  std::vector<Dim> output_shape(int, const TensorList&) const override {
    return {Dim::of(kImages, 0), Dim::of(kImages, 1, kBlock * kBlock), Dim::part(kImages, 2, added(2), kBlock),
            Dim::part(kImages, 3, added(3), kBlock)};
  }

  DType output_type(int, const DType* inputs) const override { return inputs[kImages]; }

  // Each side in its own type and layout: float32 images become what the convolution reads, without another layer.
  bool supports(int position, const TensorList& tensors) const override {
    const TensorInfo& tensor = tensors.items[position];
    if (position != kImages) return is_feature_map(tensor);
    return is_linear(tensor, DType::kFloat) || is_linear(tensor, DType::kHalf);
  }

  size_t workspace_bytes(const TensorList&) const override { return 0; }

  cudaError_t enqueue(const TensorList& tensors, const void* const* inputs, void* const* outputs, void*,
                      cudaStream_t stream) const override {
    const TensorInfo& images = tensors.input(kImages);
    const TensorInfo& blocks = tensors.output(0);
    PaddedSpaceToDepthArguments arguments{};
    arguments.images = inputs[kImages];
    arguments.images_type = element_type(images.dtype);
    arguments.blocks = outputs[0];
    arguments.blocks_type = element_type(blocks.dtype);
    arguments.blocks_layout = tensor_layout(blocks.layout);
    arguments.batch = images.dims[0];
    arguments.channels = images.dims[1];
    arguments.height = images.dims[2];
    arguments.width = images.dims[3];
    arguments.top = pads_[kTop];
    arguments.left = pads_[kLeft];
    arguments.bottom = pads_[kBottom];
    arguments.right = pads_[kRight];
    return launch_padded_space_to_depth(arguments, stream);
  }

 private:
  // Pixels added to the images' height (axis 2) or width (axis 3).
  int64_t added(int axis) const {
    return axis == 2 ? int64_t{pads_[kTop]} + pads_[kBottom] : int64_t{pads_[kLeft]} + pads_[kRight];
  }

  std::vector<int32_t> pads_;
};

}  // namespace

OpType padded_space_to_depth_type() {
  return {kName,
          {required_int("pads"), optional_int("blocksize", kBlock)},
          [](Attributes attributes) -> std::shared_ptr<const Op> {
            return std::make_shared<PaddedSpaceToDepthOp>(std::move(attributes));
          }};
}

}  // namespace maskrcnn
