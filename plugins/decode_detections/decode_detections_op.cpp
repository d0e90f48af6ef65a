#include "plugins/decode_detections/decode_detections_op.h"

#include "plugins/common/box_decoding_attributes.h"
#include "plugins/decode_detections/decode_detections_kernel.h"

namespace maskrcnn {
namespace {

constexpr const char* kName = "DecodeDetections";

enum Input { kLogits, kDeltas, kProposals, kRealCount, kImageSizes, kNumInputs };
enum Output { kBoxes, kScores, kNumOutputs };

class DecodeDetectionsOp : public Op {
 public:
  explicit DecodeDetectionsOp(Attributes attributes)
      : Op(std::move(attributes)), decoding_(box_decoding_from(this->attributes())) {}

  int num_inputs() const override { return kNumInputs; }
  int num_outputs() const override { return kNumOutputs; }

  void check_shapes(const TensorList& tensors) const override {
    const TensorInfo& proposals = tensors.input(kProposals);
    const TensorInfo& logits = tensors.input(kLogits);
    const TensorInfo& deltas = tensors.input(kDeltas);
    expect_shape(kName, "proposals", proposals, {kUnknown, kUnknown, 4});
    const int64_t batch = proposals.dims[0];
    expect_shape(kName, "logits", logits, {batch, proposals.dims[1], kUnknown});
    expect_shape(kName, "deltas", deltas, {batch, proposals.dims[1], kUnknown});
    expect_shape(kName, "count", tensors.input(kRealCount), {batch});
    expect_shape(kName, "image_sizes", tensors.input(kImageSizes), {batch, 2});
    // The number of candidates is a multiple of it: the shape of an output.
    expect(logits.dims[2] >= 2 && logits.dims[2] <= kDecodeDetectionsMaxClasses + 1,
           std::string(kName) + ": expected input logits with 1 to " + std::to_string(kDecodeDetectionsMaxClasses) +
               " classes and the background, their number fixed in the graph, found " + shape_name(logits) +
               ". Reshape it in the ONNX graph");
    const bool own_boxes = deltas.dims[2] == 4 * num_classes(tensors);
    expect(deltas.dims[2] == kUnknown || deltas.dims[2] == 4 || own_boxes,
           std::string(kName) + ": expected input deltas with 4, or 4 for each of " +
               std::to_string(num_classes(tensors)) + " classes, found " + shape_name(deltas) +
               ". Reshape it in the ONNX graph");
  }

  void check_types(const DType* inputs) const override {
    for (const int input : {kLogits, kDeltas, kProposals, kImageSizes}) {
      expect_dtype(kName, input_name(input), inputs[input], {DType::kFloat, DType::kHalf});
    }
    expect_dtype(kName, "count", inputs[kRealCount], {DType::kInt32});
  }

  std::vector<Dim> output_shape(int output, const TensorList& tensors) const override {
    const Dim candidates = Dim::of(kProposals, 1, num_classes(tensors));
    if (output == kBoxes) return {Dim::of(kProposals, 0), candidates, Dim::fixed(4)};
    return {Dim::of(kProposals, 0), candidates};
  }

  DType output_type(int, const DType*) const override { return DType::kFloat; }

  // The dense layers' outputs are read in their type; coordinates, and all that is written, are float32.
  bool supports(int position, const TensorList& tensors) const override {
    const TensorInfo& tensor = tensors.items[position];
    if (position == kRealCount) return is_linear(tensor, DType::kInt32);
    const bool is_from_dense = position == kLogits || position == kDeltas;
    return is_linear(tensor, DType::kFloat) || (is_from_dense && is_linear(tensor, DType::kHalf));
  }

  size_t workspace_bytes(const TensorList&) const override { return 0; }

  cudaError_t enqueue(const TensorList& tensors, const void* const* inputs, void* const* outputs, void*,
                      cudaStream_t stream) const override {
    const TensorInfo& proposals = tensors.input(kProposals);
    DecodeDetectionsArguments arguments{};
    arguments.logits = inputs[kLogits];
    arguments.logits_type = element_type(tensors.input(kLogits).dtype);
    arguments.deltas = inputs[kDeltas];
    arguments.deltas_type = element_type(tensors.input(kDeltas).dtype);
    arguments.proposals = static_cast<const float*>(inputs[kProposals]);
    arguments.count = static_cast<const int32_t*>(inputs[kRealCount]);
    arguments.image_sizes = static_cast<const float*>(inputs[kImageSizes]);
    arguments.batch = static_cast<int32_t>(proposals.dims[0]);
    arguments.num_proposals = static_cast<int32_t>(proposals.dims[1]);
    arguments.num_classes = static_cast<int32_t>(num_classes(tensors));
    arguments.class_agnostic = tensors.input(kDeltas).dims[2] == 4;
    arguments.decoding = decoding_;
    arguments.boxes = static_cast<float*>(outputs[kBoxes]);
    arguments.scores = static_cast<float*>(outputs[kScores]);
    return launch_decode_detections(arguments, stream);
  }

 private:
  static int64_t num_classes(const TensorList& tensors) { return tensors.input(kLogits).dims[2] - 1; }

  static const char* input_name(int input) {
    constexpr const char* kNames[] = {"logits", "deltas", "proposals", "count", "image_sizes"};
    return kNames[input];
  }

  BoxDecoding decoding_;
};

}  // namespace

OpType decode_detections_type() {
  return {kName, box_decoding_attributes(), [](Attributes attributes) -> std::shared_ptr<const Op> {
            return std::make_shared<DecodeDetectionsOp>(std::move(attributes));
          }};
}

}  // namespace maskrcnn
