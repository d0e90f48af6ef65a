#include "plugins/decode_proposals/decode_proposals_op.h"

#include <limits>
#include <numeric>

#include "plugins/common/box_decoding_attributes.h"
#include "plugins/decode_proposals/decode_proposals_kernel.h"
#include "plugins/select_top/select_top_kernel.h"

namespace maskrcnn {
namespace {

constexpr const char* kName = "DecodeProposals";
constexpr float kMaxFloat = std::numeric_limits<float>::max();

enum Output { kBoxes, kScores, kNumOutputs };

// Inputs: the logits of every level, the deltas of every level, the priors, the images' sizes.
class DecodeProposalsOp : public Op {
 public:
  explicit DecodeProposalsOp(Attributes attributes)
      : Op(std::move(attributes)),
        top_(this->attributes().integers("top", kDecodeProposalsMaxLevels, 1, kSelectTopMaxK)),
        strides_(strides_from(this->attributes(), top_.size())),
        decoding_(box_decoding_from(this->attributes())),
        min_size_(this->attributes().number("min_size", -kMaxFloat, kMaxFloat)) {}

  int num_inputs() const override { return 2 * num_levels() + 2; }
  int num_outputs() const override { return kNumOutputs; }

  void check_shapes(const TensorList& tensors) const override {
    const TensorInfo& first = tensors.input(logits(0));
    int64_t num_priors = 0;
    for (int level = 0; level < num_levels(); ++level) {
      check_level(tensors, level);
      const int64_t own = strides_.empty() ? num_anchors_of(tensors.input(logits(level))) : first.dims[1];
      num_priors = num_priors == kUnknown || own == kUnknown ? kUnknown : num_priors + own;
    }
    expect_shape(kName, "priors", tensors.input(priors()), {num_priors, 4});
    expect_shape(kName, "image_sizes", tensors.input(image_sizes()), {first.dims[0], 2});
  }

  void check_types(const DType* inputs) const override {
    for (int level = 0; level < num_levels(); ++level) {
      expect_dtype(kName, input_name("logits", level).c_str(), inputs[logits(level)], {DType::kFloat, DType::kHalf});
      expect_dtype(kName, input_name("deltas", level).c_str(), inputs[deltas(level)], {DType::kFloat, DType::kHalf});
    }
    expect_dtype(kName, "priors", inputs[priors()], {DType::kFloat, DType::kHalf});
    expect_dtype(kName, "image_sizes", inputs[image_sizes()], {DType::kFloat, DType::kHalf});
  }

  std::vector<Dim> output_shape(int output, const TensorList&) const override {
    const std::vector<Dim> rows{Dim::of(logits(0), 0), Dim::fixed(std::accumulate(top_.begin(), top_.end(), 0))};
    return output == kBoxes ? std::vector<Dim>{rows[0], rows[1], Dim::fixed(4)} : rows;
  }

  DType output_type(int, const DType*) const override { return DType::kFloat; }

  // All maps share a type and a layout.
  bool supports(int position, const TensorList& tensors) const override {
    const TensorInfo& tensor = tensors.items[position];
    if (position >= priors()) return is_linear(tensor, DType::kFloat);
    const TensorInfo& first = tensors.items[0];
    return is_feature_map(tensor) && tensor.dtype == first.dtype && tensor.layout == first.layout;
  }

  size_t workspace_bytes(const TensorList& tensors) const override {
    for (int i = 0; i < priors(); ++i) {
      if (!is_known(tensors.input(i))) return 0;
    }
    return decode_proposals_workspace_size(sizes_from(tensors));
  }

  cudaError_t enqueue(const TensorList& tensors, const void* const* inputs, void* const* outputs, void* workspace,
                      cudaStream_t stream) const override {
    DecodeProposalsArguments arguments = sizes_from(tensors);
    for (int level = 0; level < num_levels(); ++level) {
      arguments.levels[level].logits = inputs[logits(level)];
      arguments.levels[level].deltas = inputs[deltas(level)];
    }
    arguments.map_type = element_type(tensors.input(0).dtype);
    arguments.map_layout = tensor_layout(tensors.input(0).layout);
    arguments.priors = static_cast<const float*>(inputs[priors()]);
    arguments.image_sizes = static_cast<const float*>(inputs[image_sizes()]);
    arguments.decoding = decoding_;
    arguments.min_size = min_size_;
    arguments.boxes = static_cast<float*>(outputs[kBoxes]);
    arguments.scores = static_cast<float*>(outputs[kScores]);
    return launch_decode_proposals(arguments, workspace, decode_proposals_workspace_size(arguments), stream);
  }

 private:
  int num_levels() const { return static_cast<int>(top_.size()); }
  int logits(int level) const { return level; }
  int deltas(int level) const { return num_levels() + level; }
  int priors() const { return 2 * num_levels(); }
  int image_sizes() const { return priors() + 1; }

  static std::string input_name(const char* kind, int level) { return std::string(kind) + "_" + std::to_string(level); }

  static bool is_known(const TensorInfo& map) {
    for (int i = 0; i < map.rank; ++i) {
      if (map.dims[i] < 0) return false;
    }
    return true;
  }

  // kUnknown where a size is.
  static int64_t num_anchors_of(const TensorInfo& map) {
    int64_t count = 1;
    for (int i = 1; i < 4; ++i) {
      if (map.dims[i] == kUnknown) return kUnknown;
      count *= map.dims[i];
    }
    return count;
  }

  void check_level(const TensorList& tensors, int level) const {
    const TensorInfo& first = tensors.input(logits(0));
    const TensorInfo& map = tensors.input(logits(level));
    const std::string name = input_name("logits", level);
    expect_shape(kName, name.c_str(), map, {first.dims[0], first.dims[1], kUnknown, kUnknown});
    const int64_t num_channels = map.dims[1] == kUnknown ? kUnknown : map.dims[1] * kDeltas;
    expect_shape(kName, input_name("deltas", level).c_str(), tensors.input(deltas(level)),
                 {map.dims[0], num_channels, map.dims[2], map.dims[3]});
    const int64_t count = num_anchors_of(map);
    expect(count == kUnknown || (count >= 1 && count <= kSelectTopMaxScores),
           std::string(kName) + ": expected input " + name + " of 1 to " + std::to_string(kSelectTopMaxScores) +
               " anchors per image, found " + shape_name(map) + ". Check the sizes of the network's input");
  }

  // Of the arguments, what the workspace depends on.
  DecodeProposalsArguments sizes_from(const TensorList& tensors) const {
    DecodeProposalsArguments arguments{};
    for (int level = 0; level < num_levels(); ++level) {
      const TensorInfo& map = tensors.input(logits(level));
      arguments.levels[level].height = static_cast<int32_t>(map.dims[2]);
      arguments.levels[level].width = static_cast<int32_t>(map.dims[3]);
      arguments.levels[level].top = top_[static_cast<size_t>(level)];
      if (strides_.empty()) continue;
      arguments.levels[level].stride_x = strides_[static_cast<size_t>(level) * 2];
      arguments.levels[level].stride_y = strides_[static_cast<size_t>(level) * 2 + 1];
    }
    arguments.num_levels = num_levels();
    arguments.batch = static_cast<int32_t>(tensors.input(0).dims[0]);
    arguments.num_anchors = static_cast<int32_t>(tensors.input(0).dims[1]);
    return arguments;
  }

  // x and y of each level; empty where priors has the anchors of every place.
  static std::vector<float> strides_from(const Attributes& attributes, size_t num_levels) {
    if (attributes.is_empty("strides")) return {};
    attributes.finite_numbers("strides", 2 * num_levels);
    return attributes.numbers("strides", 2 * num_levels);
  }

  std::vector<int32_t> top_;
  std::vector<float> strides_;
  BoxDecoding decoding_;
  float min_size_;
};

}  // namespace

OpType decode_proposals_type() {
  std::vector<AttributeSpec> attributes = box_decoding_attributes();
  attributes.push_back(required_int("top"));
  attributes.push_back(optional_float("min_size", -1.f));
  attributes.push_back(optional_floats("strides", {}));
  return {kName, std::move(attributes), [](Attributes given) -> std::shared_ptr<const Op> {
            return std::make_shared<DecodeProposalsOp>(std::move(given));
          }};
}

}  // namespace maskrcnn
