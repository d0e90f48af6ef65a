#include "plugins/select_top/select_top_op.h"

#include "plugins/select_top/select_top_kernel.h"

namespace maskrcnn {
namespace {

constexpr const char* kName = "SelectTop";

enum Input { kScores, kNumInputs };
enum Output { kValues, kIndices, kNumOutputs };

class SelectTopOp : public Op {
 public:
  explicit SelectTopOp(Attributes attributes)
      : Op(std::move(attributes)), k_(this->attributes().integer("k", 1, kSelectTopMaxK)) {}

  int num_inputs() const override { return kNumInputs; }
  int num_outputs() const override { return kNumOutputs; }

  void check_shapes(const TensorList& tensors) const override {
    const TensorInfo& scores = tensors.input(kScores);
    expect_shape(kName, "scores", scores, {kUnknown, kUnknown});
    const int64_t num_scores = scores.dims[1];
    expect(num_scores == kUnknown || (num_scores >= k_ && num_scores <= kSelectTopMaxScores),
           std::string(kName) + ": expected input scores with rows of k = " + std::to_string(k_) + " to " +
               std::to_string(kSelectTopMaxScores) + " scores, found " + shape_name(scores) +
               ". Pad the rows in the ONNX graph, or lower k");
  }

  void check_types(const DType* inputs) const override {
    expect_dtype(kName, "scores", inputs[kScores], {DType::kFloat, DType::kHalf});
  }

  std::vector<Dim> output_shape(int, const TensorList&) const override {
    return {Dim::of(kScores, 0), Dim::fixed(k_)};
  }

  DType output_type(int output, const DType*) const override {
    return output == kValues ? DType::kFloat : DType::kInt32;
  }

  bool supports(int position, const TensorList& tensors) const override {
    const bool is_indices = position == kNumInputs + kIndices;
    return is_linear(tensors.items[position], is_indices ? DType::kInt32 : DType::kFloat);
  }

  size_t workspace_bytes(const TensorList& tensors) const override {
    const TensorInfo& scores = tensors.input(kScores);
    if (scores.dims[0] <= 0 || scores.dims[1] < k_) return 0;
    return select_top_workspace_size(static_cast<int32_t>(scores.dims[0]), static_cast<int32_t>(scores.dims[1]), k_);
  }

  cudaError_t enqueue(const TensorList& tensors, const void* const* inputs, void* const* outputs, void* workspace,
                      cudaStream_t stream) const override {
    const TensorInfo& scores = tensors.input(kScores);
    SelectTopArguments arguments{};
    arguments.scores = static_cast<const float*>(inputs[kScores]);
    arguments.batch = static_cast<int32_t>(scores.dims[0]);
    arguments.num_scores = static_cast<int32_t>(scores.dims[1]);
    arguments.k = k_;
    arguments.values = static_cast<float*>(outputs[kValues]);
    arguments.indices = static_cast<int32_t*>(outputs[kIndices]);
    return launch_select_top(arguments, workspace, workspace_bytes(tensors), stream);
  }

 private:
  int32_t k_;
};

}  // namespace

OpType select_top_type() {
  return {kName, {required_int("k")}, [](Attributes attributes) -> std::shared_ptr<const Op> {
            return std::make_shared<SelectTopOp>(std::move(attributes));
          }};
}

}  // namespace maskrcnn
