#include "plugins/tensorrt/plugin_v2.h"

#include <cstring>

namespace maskrcnn {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

TensorList list_from(const PluginTensorDesc* inputs, int num_inputs, const PluginTensorDesc* outputs, int num_outputs) {
  return tensors_from(inputs, num_inputs, outputs, num_outputs,
                      [](const PluginTensorDesc& desc) { return tensor_from(desc); });
}

// Nothing in it changes after it was made except the namespace, and clones share the operator: any number of contexts
// may use it from any number of threads.
class PluginV2 final : public nvinfer1::IPluginV2DynamicExt {
 public:
  PluginV2(const char* name, std::shared_ptr<const Op> op, std::string plugin_namespace)
      : name_(name),
        op_(std::move(op)),
        bytes_(bytes_from_attributes(op_->attributes().all())),
        namespace_(std::move(plugin_namespace)) {}

  const char* getPluginType() const noexcept override { return name_; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
  int32_t getNbOutputs() const noexcept override { return op_->num_outputs(); }
  int32_t initialize() noexcept override { return 0; }
  void terminate() noexcept override {}
  void destroy() noexcept override { delete this; }
  size_t getSerializationSize() const noexcept override { return bytes_.size(); }
  void serialize(void* buffer) const noexcept override { std::memcpy(buffer, bytes_.data(), bytes_.size()); }

  void setPluginNamespace(const char* plugin_namespace) noexcept override {
    guarded(name_, false, [&] {
      namespace_ = plugin_namespace == nullptr ? "" : plugin_namespace;
      return true;
    });
  }

  IPluginV2DynamicExt* clone() const noexcept override {
    return guarded<IPluginV2DynamicExt*>(name_, nullptr, [&] { return new PluginV2(name_, op_, namespace_); });
  }

  // TensorRT takes a rank of -1 for an error.
  DimsExprs getOutputDimensions(int32_t output, const DimsExprs* inputs, int32_t num_inputs,
                                nvinfer1::IExprBuilder& builder) noexcept override {
    DimsExprs failed{};
    failed.nbDims = -1;
    return guarded(name_, failed, [&] { return output_dims(name_, *op_, output, inputs, num_inputs, builder); });
  }

  // Has no way to fail: what it logs explains why the builder then finds no format for the plugin.
  DataType getOutputDataType(int32_t output, const DataType* inputs, int32_t num_inputs) const noexcept override {
    return guarded(name_, DataType::kFLOAT,
                   [&] { return output_types(name_, *op_, inputs, num_inputs).at(static_cast<size_t>(output)); });
  }

  // Asked for many combinations: a refusal is an answer, not an error, and is not logged.
  bool supportsFormatCombination(int32_t position, const PluginTensorDesc* tensors, int32_t num_inputs,
                                 int32_t num_outputs) noexcept override {
    return guarded(name_, false, [&] {
      return supports(*op_, position, list_from(tensors, num_inputs, tensors + num_inputs, num_outputs));
    });
  }

  void configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                       int32_t) noexcept override {}

  size_t getWorkspaceSize(const PluginTensorDesc* inputs, int32_t num_inputs, const PluginTensorDesc* outputs,
                          int32_t num_outputs) const noexcept override {
    return guarded<size_t>(name_, 0,
                           [&] { return op_->workspace_bytes(list_from(inputs, num_inputs, outputs, num_outputs)); });
  }

  int32_t enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    return guarded(name_, -1, [&] {
      return run(name_, *op_, input_descs, output_descs, op_->num_inputs(), inputs, outputs, workspace, stream);
    });
  }

 private:
  const char* name_;
  std::shared_ptr<const Op> op_;
  std::string bytes_;
  std::string namespace_;
};

}  // namespace

nvinfer1::IPluginV2* CreatorV2::createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields) noexcept {
  return guarded<nvinfer1::IPluginV2*>(type_.name, nullptr,
                                       [&] { return create(attributes_from(type_.name, fields)); });
}

nvinfer1::IPluginV2* CreatorV2::deserializePlugin(const char*, const void* data, size_t length) noexcept {
  return guarded<nvinfer1::IPluginV2*>(type_.name, nullptr,
                                       [&] { return create(attributes_from_bytes(data, length)); });
}

void CreatorV2::setPluginNamespace(const char* plugin_namespace) noexcept {
  guarded(type_.name, false, [&] {
    namespace_ = plugin_namespace == nullptr ? "" : plugin_namespace;
    return true;
  });
}

nvinfer1::IPluginV2* CreatorV2::create(const std::vector<Attribute>& attributes) const {
  return new PluginV2(type_.name, op_from(type_, attributes), namespace_);
}

}  // namespace maskrcnn
