#include "plugins/tensorrt/plugin_v3.h"

namespace maskrcnn {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kFailed = -1;

// Never changes after it was made, and clones share the operator: any number of contexts may use it from any number of
// threads.
class PluginV3 final : public nvinfer1::IPluginV3,
                       public nvinfer1::IPluginV3OneCore,
                       public nvinfer1::IPluginV3OneBuild,
                       public nvinfer1::IPluginV3OneRuntime {
 public:
  PluginV3(const char* name, std::shared_ptr<const Op> op) : name_(name), op_(std::move(op)) {
    for (const Attribute& attribute : op_->attributes().all()) fields_.push_back(field_from(attribute));
    collection_.nbFields = static_cast<int32_t>(fields_.size());
    collection_.fields = fields_.data();
  }

  nvinfer1::IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD:
        return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  IPluginV3* clone() noexcept override {
    return guarded<IPluginV3*>(name_, nullptr, [&] { return new PluginV3(name_, op_); });
  }

  const char* getPluginName() const noexcept override { return name_; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return ""; }
  int32_t getNbOutputs() const noexcept override { return op_->num_outputs(); }

  int32_t getOutputDataTypes(DataType* outputs, int32_t num_outputs, const DataType* inputs,
                             int32_t num_inputs) const noexcept override {
    return guarded(name_, kFailed, [&] {
      const std::vector<DataType> types = output_types(name_, *op_, inputs, num_inputs);
      for (int i = 0; i < num_outputs; ++i) outputs[i] = types.at(static_cast<size_t>(i));
      return 0;
    });
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t num_inputs, const DimsExprs*, int32_t, DimsExprs* outputs,
                          int32_t num_outputs, nvinfer1::IExprBuilder& builder) noexcept override {
    return guarded(name_, kFailed, [&] {
      for (int i = 0; i < num_outputs; ++i) outputs[i] = output_dims(name_, *op_, i, inputs, num_inputs, builder);
      return 0;
    });
  }

  // Asked for many combinations: a refusal is an answer, not an error, and is not logged.
  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t num_inputs,
                                 int32_t num_outputs) noexcept override {
    return guarded(name_, false, [&] {
      return supports(*op_, position,
                      tensors_from(tensors, num_inputs, tensors + num_inputs, num_outputs,
                                   [](const DynamicPluginTensorDesc& desc) { return tensor_from(desc.desc); }));
    });
  }

  int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                          int32_t) noexcept override {
    return 0;
  }

  size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                          const DynamicPluginTensorDesc* outputs, int32_t num_outputs) const noexcept override {
    return guarded<size_t>(name_, 0, [&] {
      return op_->workspace_bytes(tensors_from(inputs, num_inputs, outputs, num_outputs, largest_tensor_from));
    });
  }

  int32_t onShapeChange(const PluginTensorDesc*, int32_t, const PluginTensorDesc*, int32_t) noexcept override {
    return 0;
  }

  int32_t enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    return guarded(name_, kFailed, [&] {
      return run(name_, *op_, input_descs, output_descs, op_->num_inputs(), inputs, outputs, workspace, stream);
    });
  }

  IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

 private:
  const char* name_;
  std::shared_ptr<const Op> op_;
  std::vector<nvinfer1::PluginField> fields_;  // point into op_
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace

nvinfer1::IPluginV3* CreatorV3::createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                             nvinfer1::TensorRTPhase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(type_.name, nullptr, [&] {
    return new PluginV3(type_.name, op_from(type_, attributes_from(type_.name, fields)));
  });
}

}  // namespace maskrcnn
