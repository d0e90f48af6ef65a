#include "plugins/common/op.h"

#include <stdexcept>

namespace maskrcnn {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat:
      return "float32";
    case DType::kHalf:
      return "float16";
    case DType::kInt8:
      return "int8";
    case DType::kInt32:
      return "int32";
    case DType::kBool:
      return "bool";
    case DType::kUInt8:
      return "uint8";
    case DType::kOther:
      break;
  }
  return "another type";
}

static std::string sizes_name(const int64_t* sizes, size_t rank) {
  std::string text = "(";
  for (size_t i = 0; i < rank; ++i) {
    text += (i > 0 ? ", " : "") + (sizes[i] == kUnknown ? std::string("*") : std::to_string(sizes[i]));
  }
  return text + ")";
}

std::string shape_name(const TensorInfo& tensor) { return sizes_name(tensor.dims, static_cast<size_t>(tensor.rank)); }

void expect(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

void expect_num_inputs(const char* op, const Op& expected, int found) {
  if (found == expected.num_inputs()) return;
  throw std::invalid_argument(std::string(op) + ": expected " + std::to_string(expected.num_inputs()) +
                              " inputs, found " + std::to_string(found) +
                              ". Correct the ONNX node; plugins/README.md lists the operator's inputs");
}

void expect_shape(const char* op, const char* input, const TensorInfo& tensor,
                  std::initializer_list<int64_t> expected) {
  bool matches = tensor.rank == static_cast<int>(expected.size());
  for (int i = 0; matches && i < tensor.rank; ++i) {
    const int64_t wanted = expected.begin()[i];
    matches = wanted == kUnknown || tensor.dims[i] == kUnknown || tensor.dims[i] == wanted;
  }
  if (matches) return;
  throw std::invalid_argument(std::string(op) + ": expected input " + input + " of shape " +
                              sizes_name(expected.begin(), expected.size()) + ", found " + shape_name(tensor) +
                              ". Reshape it in the ONNX graph; plugins/README.md lists the operator's inputs");
}

void expect_dtype(const char* op, const char* input, DType found, std::initializer_list<DType> accepted) {
  std::string names;
  for (const DType dtype : accepted) {
    if (dtype == found) return;
    names += (names.empty() ? "" : " or ") + std::string(dtype_name(dtype));
  }
  throw std::invalid_argument(std::string(op) + ": expected input " + input + " of type " + names + ", found " +
                              dtype_name(found) + ". Insert a Cast in the ONNX graph");
}

void expect_same_size(const char* op, const char* what, int64_t a, int64_t b) {
  if (a == b || a == kUnknown || b == kUnknown) return;
  throw std::invalid_argument(std::string(op) + ": expected " + what + " to agree, found " + std::to_string(a) +
                              " and " + std::to_string(b) + ". Check the shapes that were set on the inputs");
}

ElementType element_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat:
      return ElementType::kFloat;
    case DType::kHalf:
      return ElementType::kHalf;
    case DType::kInt8:
      return ElementType::kInt8;
    case DType::kUInt8:
      return ElementType::kUint8;
    case DType::kBool:
      return ElementType::kBool;
    case DType::kInt32:
    case DType::kOther:
      break;
  }
  throw std::logic_error(std::string("no kernel reads or writes ") + dtype_name(dtype));
}

TensorLayout tensor_layout(Layout layout) {
  switch (layout) {
    case Layout::kLinear:
      return TensorLayout::kNchw;
    case Layout::kHwc:
      return TensorLayout::kNhwc;
    case Layout::kHwc8:
      return TensorLayout::kNhwc8;
    case Layout::kChw32:
      return TensorLayout::kNchw32;
    case Layout::kOther:
      break;
  }
  throw std::logic_error("no kernel reads or writes this layout");
}

}  // namespace maskrcnn
