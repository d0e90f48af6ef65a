#include "plugins/grouped_nms/grouped_nms_op.h"

#include <limits>

#include "plugins/grouped_nms/grouped_nms_kernel.h"

namespace maskrcnn {
namespace {

constexpr const char* kName = "GroupedNMS";
constexpr int kMaxOutput = 1 << 20;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum Input { kBoxes, kScores, kGroups, kNumInputs };
enum Output { kIndices, kCount, kNumOutputs };

class GroupedNmsOp : public Op {
 public:
  explicit GroupedNmsOp(Attributes attributes)
      : Op(std::move(attributes)),
        iou_threshold_(this->attributes().number("iou_threshold", 0.f, 1.f)),
        score_threshold_(this->attributes().number("score_threshold", -kInfinity, kInfinity)),
        max_output_(this->attributes().integer("max_output", 1, kMaxOutput)),
        shift_groups_(this->attributes().flag("shift_groups")) {}

  int num_inputs() const override { return kNumInputs; }
  int num_outputs() const override { return kNumOutputs; }

  void check_shapes(const TensorList& tensors) const override {
    const TensorInfo& boxes = tensors.input(kBoxes);
    const TensorInfo& groups = tensors.input(kGroups);
    expect_shape(kName, "boxes", boxes, {kUnknown, kUnknown, 4});
    expect_shape(kName, "scores", tensors.input(kScores), {boxes.dims[0], boxes.dims[1]});
    expect_shape(kName, "groups", groups, {kUnknown, boxes.dims[1]});
    if (groups.dims[0] != 1) expect_same_size(kName, "the batch of boxes and groups", boxes.dims[0], groups.dims[0]);
  }

  void check_types(const DType* inputs) const override {
    expect_dtype(kName, "boxes", inputs[kBoxes], {DType::kFloat, DType::kHalf});
    expect_dtype(kName, "scores", inputs[kScores], {DType::kFloat, DType::kHalf});
    expect_dtype(kName, "groups", inputs[kGroups], {DType::kInt32});
  }

  std::vector<Dim> output_shape(int output, const TensorList&) const override {
    if (output == kCount) return {Dim::of(kBoxes, 0)};
    return {Dim::of(kBoxes, 0), Dim::fixed(max_output_)};
  }

  DType output_type(int, const DType*) const override { return DType::kInt32; }

  bool supports(int position, const TensorList& tensors) const override {
    return is_linear(tensors.items[position], position < kGroups ? DType::kFloat : DType::kInt32);
  }

  size_t workspace_bytes(const TensorList& tensors) const override {
    const TensorInfo& boxes = tensors.input(kBoxes);
    if (boxes.dims[0] <= 0 || boxes.dims[1] <= 0) return 0;
    return grouped_nms_workspace_size(static_cast<int32_t>(boxes.dims[0]), static_cast<int32_t>(boxes.dims[1]));
  }

  cudaError_t enqueue(const TensorList& tensors, const void* const* inputs, void* const* outputs, void* workspace,
                      cudaStream_t stream) const override {
    const TensorInfo& boxes = tensors.input(kBoxes);
    GroupedNmsArguments arguments{};
    arguments.boxes = static_cast<const float*>(inputs[kBoxes]);
    arguments.scores = static_cast<const float*>(inputs[kScores]);
    arguments.groups = static_cast<const int32_t*>(inputs[kGroups]);
    arguments.batch = static_cast<int32_t>(boxes.dims[0]);
    arguments.groups_batch = static_cast<int32_t>(tensors.input(kGroups).dims[0]);
    arguments.num_boxes = static_cast<int32_t>(boxes.dims[1]);
    arguments.max_output = max_output_;
    arguments.iou_threshold = iou_threshold_;
    arguments.score_threshold = score_threshold_;
    arguments.shift_groups = shift_groups_;
    arguments.indices = static_cast<int32_t*>(outputs[kIndices]);
    arguments.count = static_cast<int32_t*>(outputs[kCount]);
    return launch_grouped_nms(arguments, workspace, workspace_bytes(tensors), stream);
  }

 private:
  float iou_threshold_;
  float score_threshold_;
  int32_t max_output_;
  bool shift_groups_;
};

}  // namespace

OpType grouped_nms_type() {
  return {kName,
          {required_float("iou_threshold"), required_float("score_threshold"), required_int("max_output"),
           optional_int("shift_groups", 1)},
          [](Attributes attributes) -> std::shared_ptr<const Op> {
            return std::make_shared<GroupedNmsOp>(std::move(attributes));
          }};
}

}  // namespace maskrcnn
