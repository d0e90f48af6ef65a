#include "plugins/tensorrt/translate.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace maskrcnn {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorFormat;

Layout layout_from(TensorFormat format) {
  if (format == TensorFormat::kLINEAR) return Layout::kLinear;
  if (format == TensorFormat::kHWC) return Layout::kHwc;
  if (format == TensorFormat::kHWC8) return Layout::kHwc8;
  if (format == TensorFormat::kCHW32) return Layout::kChw32;
  return Layout::kOther;
}

void set_dims(TensorInfo& tensor, const nvinfer1::Dims& dims) {
  tensor.rank = dims.nbDims;
  for (int i = 0; i < dims.nbDims && i < kMaxRank; ++i) tensor.dims[i] = dims.d[i];
}

template <typename T>
const T* field_values(const char* op, const PluginField& field) {
  expect(field.length >= 0 && (field.length == 0 || field.data != nullptr),
         std::string(op) + ": attribute " + field.name + ": expected values, found none. Pass data and length");
  return static_cast<const T*>(field.data);
}

#if NV_TENSORRT_MAJOR >= 10
std::vector<int32_t> narrowed(const char* op, const PluginField& field) {
  const auto* values = field_values<int64_t>(op, field);
  std::vector<int32_t> list;
  for (int i = 0; i < field.length; ++i) {
    const bool fits =
        values[i] >= std::numeric_limits<int32_t>::min() && values[i] <= std::numeric_limits<int32_t>::max();
    expect(fits, std::string(op) + ": attribute " + field.name + ": expected a number of 32 bits, found " +
                     std::to_string(values[i]) + ". Correct the ONNX node");
    list.push_back(static_cast<int32_t>(values[i]));
  }
  return list;
}
#endif

// Some callers count the terminating zero, others do not.
std::string string_from(const char* op, const PluginField& field) {
  const auto* text = field_values<char>(op, field);
  return std::string(text, std::find(text, text + field.length, '\0'));
}

template <typename T, typename Stored>
AttributeValue list_from(const char* op, const PluginField& field) {
  const auto* values = field_values<Stored>(op, field);
  std::vector<T> list;
  for (int i = 0; i < field.length; ++i) list.push_back(static_cast<T>(values[i]));
  return list;
}

AttributeValue value_from(const char* op, const PluginField& field) {
  switch (field.type) {
    case PluginFieldType::kINT32:
      return list_from<int32_t, int32_t>(op, field);
    case PluginFieldType::kFLOAT32:
      return list_from<float, float>(op, field);
    case PluginFieldType::kFLOAT64:
      return list_from<float, double>(op, field);
    case PluginFieldType::kCHAR:
      return string_from(op, field);
#if NV_TENSORRT_MAJOR >= 10
    case PluginFieldType::kINT64:
      return narrowed(op, field);
#endif
    default:
      break;
  }
  throw std::invalid_argument(std::string(op) + ": attribute " + field.name +
                              ": expected an integer, a float or a string, found PluginFieldType " +
                              std::to_string(static_cast<int>(field.type)) + ". Pass INT32, FLOAT32 or CHAR");
}

PluginFieldType field_type(const AttributeValue& value) {
  constexpr PluginFieldType kTypes[] = {PluginFieldType::kINT32, PluginFieldType::kFLOAT32, PluginFieldType::kCHAR};
  return kTypes[value.index()];
}

}  // namespace

DType dtype_from(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return DType::kFloat;
    case DataType::kHALF:
      return DType::kHalf;
    case DataType::kINT8:
      return DType::kInt8;
    case DataType::kINT32:
      return DType::kInt32;
    case DataType::kBOOL:
      return DType::kBool;
#if NV_TENSORRT_MAJOR > 8 || NV_TENSORRT_MINOR >= 5
    case DataType::kUINT8:
      return DType::kUInt8;
#endif
    default:
      return DType::kOther;
  }
}

DataType trt_type_from(DType dtype) {
  switch (dtype) {
    case DType::kFloat:
      return DataType::kFLOAT;
    case DType::kHalf:
      return DataType::kHALF;
    case DType::kInt8:
      return DataType::kINT8;
    case DType::kInt32:
      return DataType::kINT32;
    case DType::kBool:
      return DataType::kBOOL;
#if NV_TENSORRT_MAJOR > 8 || NV_TENSORRT_MINOR >= 5
    case DType::kUInt8:
      return DataType::kUINT8;
#endif
    default:
      break;
  }
  throw std::invalid_argument(std::string("expected a type that TensorRT ") + std::to_string(NV_TENSORRT_MAJOR) + "." +
                              std::to_string(NV_TENSORRT_MINOR) + " has, found " + dtype_name(dtype) +
                              ". Choose another one in the ONNX node's attribute");
}

TensorInfo tensor_from(const nvinfer1::PluginTensorDesc& desc) {
  TensorInfo tensor;
  tensor.dtype = dtype_from(desc.type);
  tensor.layout = layout_from(desc.format);
  set_dims(tensor, desc.dims);
  return tensor;
}

TensorInfo largest_tensor_from(const nvinfer1::DynamicPluginTensorDesc& desc) {
  TensorInfo tensor = tensor_from(desc.desc);
  set_dims(tensor, desc.max);
  return tensor;
}

TensorInfo tensor_from(const nvinfer1::DimsExprs& dims) {
  TensorInfo tensor;
  tensor.rank = dims.nbDims;
  for (int i = 0; i < dims.nbDims && i < kMaxRank; ++i) {
    tensor.dims[i] = dims.d[i]->isConstant() ? dims.d[i]->getConstantValue() : kUnknown;
  }
  return tensor;
}

std::vector<DataType> output_types(const char* name, const Op& op, const DataType* inputs, int num_inputs) {
  expect_num_inputs(name, op, num_inputs);
  std::vector<DType> dtypes;
  for (int i = 0; i < num_inputs; ++i) dtypes.push_back(dtype_from(inputs[i]));
  op.check_types(dtypes.data());
  std::vector<DataType> types;
  for (int i = 0; i < op.num_outputs(); ++i) types.push_back(trt_type_from(op.output_type(i, dtypes.data())));
  return types;
}

bool supports(const Op& op, int position, const TensorList& tensors) {
  const bool complete = tensors.num_inputs == op.num_inputs() && tensors.num_outputs == op.num_outputs();
  return complete && position < op.num_inputs() + op.num_outputs() && op.supports(position, tensors);
}

static const nvinfer1::IDimensionExpr* size_from(const Dim& dim, const nvinfer1::DimsExprs* inputs,
                                                 nvinfer1::IExprBuilder& builder) {
  using nvinfer1::DimensionOperation;
  const auto constant = [&](int64_t value) { return builder.constant(static_cast<int32_t>(value)); };
  if (dim.input < 0) return constant(dim.factor);
  const nvinfer1::IDimensionExpr* size = inputs[dim.input].d[dim.axis];
  if (dim.factor != 1) size = builder.operation(DimensionOperation::kPROD, *size, *constant(dim.factor));
  if (dim.added != 0) size = builder.operation(DimensionOperation::kSUM, *size, *constant(dim.added));
  if (dim.divisor != 1) size = builder.operation(DimensionOperation::kFLOOR_DIV, *size, *constant(dim.divisor));
  return size;
}

nvinfer1::DimsExprs output_dims(const char* name, const Op& op, int output, const nvinfer1::DimsExprs* inputs,
                                int num_inputs, nvinfer1::IExprBuilder& builder) {
  expect_num_inputs(name, op, num_inputs);
  const TensorList tensors =
      tensors_from(inputs, num_inputs, inputs, 0, [](const nvinfer1::DimsExprs& dims) { return tensor_from(dims); });
  op.check_shapes(tensors);
  nvinfer1::DimsExprs result{};
  for (const Dim& dim : op.output_shape(output, tensors)) {
    result.d[result.nbDims++] = size_from(dim, inputs, builder);
  }
  return result;
}

int run(const char* name, const Op& op, const nvinfer1::PluginTensorDesc* input_descs,
        const nvinfer1::PluginTensorDesc* output_descs, int num_inputs, const void* const* inputs, void* const* outputs,
        void* workspace, cudaStream_t stream) {
  const TensorList tensors = tensors_from(input_descs, num_inputs, output_descs, op.num_outputs(),
                                          [](const nvinfer1::PluginTensorDesc& desc) { return tensor_from(desc); });
  // Again, now that every size is known: a kernel must not read past an input that is shorter than another.
  op.check_shapes(tensors);
  const cudaError_t status = op.enqueue(tensors, inputs, outputs, workspace, stream);
  if (status == cudaSuccess) return 0;
  const std::string message = std::string("expected the kernel to launch, found ") + cudaGetErrorName(status) + ": " +
                              cudaGetErrorString(status) +
                              ". If there is no kernel image for this GPU, rebuild the library with its "
                              "CMAKE_CUDA_ARCHITECTURES";
  log_error(name, message.c_str());
  return static_cast<int>(status);
}

FieldNames::FieldNames(const OpType& type) {
  for (const AttributeSpec& spec : type.attributes) {
    fields_.emplace_back(spec.name, nullptr, field_type(spec.fallback), 1);
  }
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

PluginField field_from(const Attribute& attribute) {
  return std::visit(
      [&](const auto& values) {
        return PluginField(attribute.name.c_str(), values.data(), field_type(attribute.value),
                           static_cast<int32_t>(values.size()));
      },
      attribute.value);
}

std::vector<Attribute> attributes_from(const char* op, const nvinfer1::PluginFieldCollection* fields) {
  std::vector<Attribute> attributes;
  for (int i = 0; fields != nullptr && i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    attributes.push_back({field.name, value_from(op, field)});
  }
  return attributes;
}

std::shared_ptr<const Op> op_from(const OpType& type, const std::vector<Attribute>& attributes) {
  return type.create(Attributes(type.name, type.attributes, attributes));
}

}  // namespace maskrcnn
