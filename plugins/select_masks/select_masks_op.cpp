#include "plugins/select_masks/select_masks_op.h"

#include "plugins/select_masks/select_masks_kernel.h"

namespace maskrcnn {
namespace {

constexpr const char* kName = "SelectMasks";

enum Input { kLogits, kLabels, kNumInputs };

class SelectMasksOp : public Op {
 public:
  using Op::Op;

  int num_inputs() const override { return kNumInputs; }
  int num_outputs() const override { return 1; }

  void check_shapes(const TensorList& tensors) const override {
    const TensorInfo& logits = tensors.input(kLogits);
    const TensorInfo& labels = tensors.input(kLabels);
    expect_shape(kName, "logits", logits, {kUnknown, kUnknown, kUnknown, kUnknown});
    expect_shape(kName, "labels", labels, {kUnknown, kUnknown});
    expect(logits.dims[1] != 0, std::string(kName) + ": expected input logits with at least one channel, found " +
                                    shape_name(logits) + ". Correct the ONNX graph");
    if (labels.dims[0] == kUnknown || labels.dims[1] == kUnknown) return;
    expect_same_size(kName, "the rows of logits and the labels of all images", logits.dims[0],
                     labels.dims[0] * labels.dims[1]);
  }

  void check_types(const DType* inputs) const override {
    expect_dtype(kName, "logits", inputs[kLogits], {DType::kFloat, DType::kHalf});
    expect_dtype(kName, "labels", inputs[kLabels], {DType::kInt32});
  }

  std::vector<Dim> output_shape(int, const TensorList&) const override {
    return {Dim::of(kLabels, 0), Dim::of(kLabels, 1), Dim::of(kLogits, 2), Dim::of(kLogits, 3)};
  }

  DType output_type(int, const DType*) const override { return DType::kFloat; }

  bool supports(int position, const TensorList& tensors) const override {
    const TensorInfo& tensor = tensors.items[position];
    if (position == kLogits) return is_feature_map(tensor);
    return is_linear(tensor, position == kLabels ? DType::kInt32 : DType::kFloat);
  }

  size_t workspace_bytes(const TensorList&) const override { return 0; }

  cudaError_t enqueue(const TensorList& tensors, const void* const* inputs, void* const* outputs, void*,
                      cudaStream_t stream) const override {
    const TensorInfo& logits = tensors.input(kLogits);
    SelectMasksArguments arguments{};
    arguments.logits = inputs[kLogits];
    arguments.logits_type = element_type(logits.dtype);
    arguments.logits_layout = tensor_layout(logits.layout);
    arguments.labels = static_cast<const int32_t*>(inputs[kLabels]);
    arguments.num_masks = logits.dims[0];
    arguments.channels = logits.dims[1];
    arguments.num_pixels = logits.dims[2] * logits.dims[3];
    arguments.masks = static_cast<float*>(outputs[0]);
    return launch_select_masks(arguments, stream);
  }
};

}  // namespace

OpType select_masks_type() {
  return {kName, {}, [](Attributes attributes) -> std::shared_ptr<const Op> {
            return std::make_shared<SelectMasksOp>(std::move(attributes));
          }};
}

}  // namespace maskrcnn
