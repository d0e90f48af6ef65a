// The operators as IPluginV3, for TensorRT 10 and later.
#pragma once

#include "plugins/tensorrt/translate.h"

namespace maskrcnn {

class CreatorV3 final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit CreatorV3(const OpType& type) : type_(type), field_names_(type) {}

  const char* getPluginName() const noexcept override { return type_.name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return ""; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return field_names_.collection(); }
  // An engine stores the plugin's attributes, so that reading one is the same call in another phase.
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;

 private:
  const OpType& type_;
  FieldNames field_names_;
};

}  // namespace maskrcnn
