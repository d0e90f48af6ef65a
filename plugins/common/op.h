// What an operator is, once for every TensorRT: its attributes, its inputs, the shape and type of its outputs, the
// formats it reads and writes, and how it is launched. No TensorRT types: plugins/tensorrt/ translates.
//
// Whatever is wrong is thrown as std::invalid_argument (expected, found, remedy); the adapters catch it, log it and
// refuse.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "plugins/common/attributes.h"
#include "plugins/common/tensor_types.h"

namespace maskrcnn {

enum class DType { kFloat, kHalf, kInt8, kInt32, kBool, kUInt8, kOther };

// How a (N, C, H, W) tensor lies in memory, under TensorRT's names. kHwc: channels last. kHwc8: the same, with their
// number rounded up to a multiple of 8. kChw32: blocks of 32 channels, each channels last; the number rounded up.
enum class Layout { kLinear, kHwc, kHwc8, kChw32, kOther };

constexpr int kMaxRank = 8;
// DecodeProposals has the most: logits and deltas of 8 levels, the anchors, the images' sizes, two outputs.
constexpr int kMaxTensors = 20;
constexpr int64_t kUnknown = -1;

struct TensorInfo {
  DType dtype = DType::kOther;
  Layout layout = Layout::kOther;
  int rank = 0;
  int64_t dims[kMaxRank] = {};  // kUnknown: not known before the engine runs
};

// The tensors of one plugin: the inputs, then the outputs.
struct TensorList {
  int num_inputs = 0;
  int num_outputs = 0;
  TensorInfo items[kMaxTensors];

  const TensorInfo& input(int i) const { return items[i]; }
  const TensorInfo& output(int i) const { return items[num_inputs + i]; }
};

// A size of an output: that of an input, a multiple of it, a part of it and something more, or a number.
struct Dim {
  int input;
  int axis;
  int64_t factor;       // of the input's size; the size itself where there is no input
  int64_t added = 0;    // to the multiple
  int64_t divisor = 1;  // of the sum, which is rounded down

  static Dim of(int input, int axis, int64_t factor = 1) { return {input, axis, factor}; }
  static Dim part(int input, int axis, int64_t added, int64_t divisor) { return {input, axis, 1, added, divisor}; }
  static Dim fixed(int64_t size) { return {-1, 0, size}; }
};

class Op {
 public:
  explicit Op(Attributes attributes) : attributes_(std::move(attributes)) {}
  virtual ~Op() = default;
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

  // Complete: with the defaults filled in.
  const Attributes& attributes() const { return attributes_; }

  virtual int num_inputs() const = 0;
  virtual int num_outputs() const = 0;
  // Ranks, and the sizes that are known. Here and below there are num_inputs() inputs: the adapters see to that.
  virtual void check_shapes(const TensorList& tensors) const = 0;
  // Whether the types of the inputs are ones that TensorRT can convert to what the kernel reads.
  virtual void check_types(const DType* inputs) const = 0;
  virtual std::vector<Dim> output_shape(int output, const TensorList& tensors) const = 0;
  virtual DType output_type(int output, const DType* inputs) const = 0;
  // Whether the tensor at `position` may have its type and layout, given those of the tensors before it.
  virtual bool supports(int position, const TensorList& tensors) const = 0;
  virtual size_t workspace_bytes(const TensorList& tensors) const = 0;
  // Const and without state: two contexts may be in here at once.
  virtual cudaError_t enqueue(const TensorList& tensors, const void* const* inputs, void* const* outputs,
                              void* workspace, cudaStream_t stream) const = 0;

 private:
  Attributes attributes_;
};

// One entry of the library's list of operators. `name` is the ONNX op_type.
struct OpType {
  const char* name;
  std::vector<AttributeSpec> attributes;
  std::shared_ptr<const Op> (*create)(Attributes attributes);
};

// What the checks of the operators share.
const char* dtype_name(DType dtype);
std::string shape_name(const TensorInfo& tensor);
void expect(bool condition, const std::string& message);
void expect_num_inputs(const char* op, const Op& expected, int found);
// Sizes of `expected`: a number, or kUnknown where any size will do.
void expect_shape(const char* op, const char* input, const TensorInfo& tensor, std::initializer_list<int64_t> expected);
void expect_dtype(const char* op, const char* input, DType found, std::initializer_list<DType> accepted);
// Equal, or one of them not known yet.
void expect_same_size(const char* op, const char* what, int64_t a, int64_t b);

ElementType element_type(DType dtype);
TensorLayout tensor_layout(Layout layout);

inline bool is_linear(const TensorInfo& tensor, DType dtype) {
  return tensor.layout == Layout::kLinear && tensor.dtype == dtype;
}

// INT8 maps as convolutions read and write them.
inline bool is_int8_map(const TensorInfo& tensor) {
  return tensor.dtype == DType::kInt8 && (tensor.layout == Layout::kLinear || tensor.layout == Layout::kChw32);
}

// float32 or float16 maps as convolutions write them. The channels-last layouts are those that TensorRT has for the type.
inline bool is_feature_map(const TensorInfo& tensor) {
  if (tensor.dtype == DType::kFloat) return tensor.layout == Layout::kLinear || tensor.layout == Layout::kHwc;
  return tensor.dtype == DType::kHalf && (tensor.layout == Layout::kLinear || tensor.layout == Layout::kHwc8);
}

}  // namespace maskrcnn
