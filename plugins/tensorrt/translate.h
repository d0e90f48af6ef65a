// Between TensorRT's types, which differ a little from version to version, and those of plugins/common/op.h; and what
// both adapters share: errors, and the names and fields of the creators.
#pragma once

#include <NvInferRuntime.h>
#include <NvInferVersion.h>

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "plugins/common/op.h"

namespace maskrcnn {

// The version of every creator, as in the graphs of mmcv 1.x: ONNX nodes without `plugin_version` ask for "1".
constexpr const char* kPluginVersion = "1";

// The library's operators.
const std::vector<OpType>& op_types();

TensorInfo tensor_from(const nvinfer1::PluginTensorDesc& desc);
// The largest sizes of the optimisation profile.
TensorInfo largest_tensor_from(const nvinfer1::DynamicPluginTensorDesc& desc);
// Sizes that are constants, and kUnknown for the others.
TensorInfo tensor_from(const nvinfer1::DimsExprs& dims);
DType dtype_from(nvinfer1::DataType type);
std::vector<nvinfer1::DataType> output_types(const char* name, const Op& op, const nvinfer1::DataType* inputs,
                                             int num_inputs);
// False where there are more or fewer tensors than the operator has.
bool supports(const Op& op, int position, const TensorList& tensors);
nvinfer1::DataType trt_type_from(DType dtype);

nvinfer1::DimsExprs output_dims(const char* name, const Op& op, int output, const nvinfer1::DimsExprs* inputs,
                                int num_inputs, nvinfer1::IExprBuilder& builder);
// Runs the operator; logs and returns the error where its inputs do not fit together or the launch fails.
int run(const char* name, const Op& op, const nvinfer1::PluginTensorDesc* input_descs,
        const nvinfer1::PluginTensorDesc* output_descs, int num_inputs, const void* const* inputs, void* const* outputs,
        void* workspace, cudaStream_t stream);

template <typename Desc, typename Translate>
TensorList tensors_from(const Desc* inputs, int num_inputs, const Desc* outputs, int num_outputs,
                        const Translate& translate) {
  if (num_inputs + num_outputs > kMaxTensors)
    throw std::invalid_argument("more inputs and outputs than any operator has");
  TensorList list;
  list.num_inputs = num_inputs;
  list.num_outputs = num_outputs;
  for (int i = 0; i < num_inputs; ++i) list.items[i] = translate(inputs[i]);
  for (int i = 0; i < num_outputs; ++i) list.items[num_inputs + i] = translate(outputs[i]);
  return list;
}

// What a creator is asked for before it makes anything.
class FieldNames {
 public:
  explicit FieldNames(const OpType& type);
  const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }

 private:
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

nvinfer1::PluginField field_from(const Attribute& attribute);
std::vector<Attribute> attributes_from(const char* op, const nvinfer1::PluginFieldCollection* fields);
std::shared_ptr<const Op> op_from(const OpType& type, const std::vector<Attribute>& attributes);

// Writes to TensorRT's own logger, and to stderr where there is none.
void log_error(const char* name, const char* message) noexcept;

// Exceptions end here: nothing may cross TensorRT's callbacks.
template <typename Result, typename Body>
Result guarded(const char* name, Result on_error, const Body& body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    log_error(name, error.what());
  } catch (...) {
    log_error(name, "an unknown exception");
  }
  return on_error;
}

}  // namespace maskrcnn
