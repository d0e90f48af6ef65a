#include "plugins/paste_masks/paste_masks_op.h"

#include "plugins/paste_masks/paste_masks_kernel.h"

namespace maskrcnn {
namespace {

constexpr const char* kName = "PasteMasks";

enum Input { kMasks, kBoxes, kCanvas, kNumInputs };

DType output_type_of(const Attributes& attributes) {
  constexpr DType kTypes[] = {DType::kUInt8, DType::kBool, DType::kInt8, DType::kHalf, DType::kFloat};
  return kTypes[attributes.choice("output_type", {"uint8", "bool", "int8", "float16", "float32"})];
}

class PasteMasksOp : public Op {
 public:
  explicit PasteMasksOp(Attributes attributes)
      : Op(std::move(attributes)),
        threshold_(this->attributes().number("threshold", 0.f, 1.f)),
        output_type_(output_type_of(this->attributes())) {}

  int num_inputs() const override { return kNumInputs; }
  int num_outputs() const override { return 1; }

  void check_shapes(const TensorList& tensors) const override {
    const TensorInfo& masks = tensors.input(kMasks);
    expect_shape(kName, "masks", masks, {kUnknown, kUnknown, kUnknown, kUnknown});
    expect_shape(kName, "boxes", tensors.input(kBoxes), {masks.dims[0], masks.dims[1], 4});
    expect_shape(kName, "canvas", tensors.input(kCanvas), {kUnknown, kUnknown, kUnknown, kUnknown});
  }

  void check_types(const DType* inputs) const override {
    expect_dtype(kName, "masks", inputs[kMasks], {DType::kFloat, DType::kHalf});
    expect_dtype(kName, "boxes", inputs[kBoxes], {DType::kFloat, DType::kHalf});
    expect_dtype(kName, "canvas", inputs[kCanvas], {DType::kFloat, DType::kHalf});
  }

  std::vector<Dim> output_shape(int, const TensorList&) const override {
    return {Dim::of(kMasks, 0), Dim::of(kMasks, 1), Dim::of(kCanvas, 2), Dim::of(kCanvas, 3)};
  }

  DType output_type(int, const DType*) const override { return output_type_; }

  bool supports(int position, const TensorList& tensors) const override {
    const TensorInfo& tensor = tensors.items[position];
    switch (position) {
      case kBoxes:
        return is_linear(tensor, DType::kFloat);
      case kNumInputs:
        // TensorRT 8 knows no other floating-point type of a network's tensors than float32, and chooses for every
        // layer whether it is float32 or float16 inside.
        return is_linear(tensor, output_type_) || (output_type_ == DType::kFloat && is_linear(tensor, DType::kHalf));
      default:
        // The canvas is not read: either type, so that it is never converted for this.
        return is_linear(tensor, DType::kFloat) || is_linear(tensor, DType::kHalf);
    }
  }

  size_t workspace_bytes(const TensorList&) const override { return 0; }

  cudaError_t enqueue(const TensorList& tensors, const void* const* inputs, void* const* outputs, void*,
                      cudaStream_t stream) const override {
    const TensorInfo& masks = tensors.input(kMasks);
    const TensorInfo& canvas = tensors.input(kCanvas);
    PasteMasksArguments arguments{};
    arguments.masks = inputs[kMasks];
    arguments.mask_type = element_type(masks.dtype);
    arguments.boxes = static_cast<const float*>(inputs[kBoxes]);
    arguments.num_masks = masks.dims[0] * masks.dims[1];
    arguments.mask_height = static_cast<int>(masks.dims[2]);
    arguments.mask_width = static_cast<int>(masks.dims[3]);
    arguments.height = static_cast<int>(canvas.dims[2]);
    arguments.width = static_cast<int>(canvas.dims[3]);
    arguments.threshold = threshold_;
    arguments.output = outputs[0];
    arguments.output_type = element_type(tensors.output(0).dtype);
    return launch_paste_masks(arguments, stream);
  }

 private:
  float threshold_;
  DType output_type_;
};

}  // namespace

OpType paste_masks_type(const char* default_output_type) {
  return {kName,
          {optional_float("threshold", 0.5f), optional_string("output_type", default_output_type)},
          [](Attributes attributes) -> std::shared_ptr<const Op> {
            return std::make_shared<PasteMasksOp>(std::move(attributes));
          }};
}

}  // namespace maskrcnn
