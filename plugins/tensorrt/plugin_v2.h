// The operators as IPluginV2DynamicExt, for TensorRT 8.
#pragma once

#include "plugins/tensorrt/translate.h"

namespace maskrcnn {

class CreatorV2 final : public nvinfer1::IPluginCreator {
 public:
  explicit CreatorV2(const OpType& type) : type_(type), field_names_(type) {}

  const char* getPluginName() const noexcept override { return type_.name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return field_names_.collection(); }
  nvinfer1::IPluginV2* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields) noexcept override;
  nvinfer1::IPluginV2* deserializePlugin(const char* name, const void* data, size_t length) noexcept override;
  void setPluginNamespace(const char* plugin_namespace) noexcept override;
  const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

 private:
  nvinfer1::IPluginV2* create(const std::vector<Attribute>& attributes) const;

  const OpType& type_;
  FieldNames field_names_;
  std::string namespace_;
};

}  // namespace maskrcnn
