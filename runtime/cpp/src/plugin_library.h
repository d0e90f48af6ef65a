// The plugin library (libmaskrcnn_plugins.so): found, loaded, and its C functions that prepare images and encode masks.
#pragma once

#include <optional>
#include <string>

#include "plugins/encode_masks/encode_masks_kernel.h"
#include "plugins/prepare_images/prepare_images_kernel.h"

namespace maskrcnn {

// Loaded once per process, and never unloaded: TensorRT keeps pointers into it.
struct PluginLibrary {
  std::string path;
  std::string sha256;
  // Null where the library has not got them, or those of another version; `without` says which then.
  int (*prepare_images)(const PrepareImagesArguments*, void*) = nullptr;
  int (*encode_masks)(const EncodeMasksArguments*, void*) = nullptr;
  const char* (*error_string)(int) = nullptr;
  std::string without;
};

// named: a path; empty: $MASKRCNN_PLUGINS, or the one beside this library, or none. kNotFound: one is named and is not
// there. kFailed: it does not load, or was compiled for another TensorRT.
std::optional<PluginLibrary> load_plugins(const std::string& named);

}  // namespace maskrcnn
