#include "plugin_library.h"

#include <dlfcn.h>

#include <cstdlib>

#include "errors.h"
#include "files.h"
#include "sidecar.h"

namespace maskrcnn {
namespace {

constexpr const char* kVariable = "MASKRCNN_PLUGINS";
constexpr const char* kFileName = "libmaskrcnn_plugins.so";
constexpr int kAbi = 3;  // of the functions of images, as in runtime/device/kernels.py

// The folder of the library that this code is in, with its slash; empty where that is not known.
std::string own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&load_plugins), &info) == 0 || info.dli_fname == nullptr) return "";
  const std::string path = info.dli_fname;
  return path.substr(0, path.find_last_of('/') + 1);
}

// Empty: there is none.
std::string find_plugins(const std::string& named) {
  const char* variable = std::getenv(kVariable);
  const std::string path = !named.empty() ? named : variable == nullptr ? "" : variable;
  if (!path.empty()) {
    if (!is_file(path)) {
      not_found(named.empty() ? std::string("$") + kVariable : "plugins",
                ": expected the plugin library, found no file ", path, "; build it with `make plugins`");
    }
    return path;
  }
  const std::string beside = own_folder() + kFileName;
  return is_file(beside) ? beside : "";
}

template <typename Function>
Function function_of(void* handle, const char* name) {
  return reinterpret_cast<Function>(dlsym(handle, name));
}

// Why the functions of images are not there; empty if they are.
std::string missing_functions(void* handle) {
  const auto abi = function_of<int32_t (*)()>(handle, "maskrcnn_images_abi");
  if (abi == nullptr) return "found no maskrcnn_images_abi";
  if (abi() != kAbi) return joined("found version ", abi());
  for (const char* name :
       {"maskrcnn_prepare_images", "maskrcnn_encode_masks", "maskrcnn_error_string", "maskrcnn_arguments_size"}) {
    if (dlsym(handle, name) == nullptr) return joined("found no ", name);
  }
  const auto size_of = function_of<size_t (*)(const char*)>(handle, "maskrcnn_arguments_size");
  const bool fits = size_of("PrepareImagesArguments") == sizeof(PrepareImagesArguments) &&
                    size_of("SourceImage") == sizeof(SourceImage) && size_of("TargetImage") == sizeof(TargetImage) &&
                    size_of("EncodeMasksArguments") == sizeof(EncodeMasksArguments);
  return fits ? "" : "found structures of other sizes";
}

}  // namespace

std::optional<PluginLibrary> load_plugins(const std::string& named) {
  const std::string path = find_plugins(named);
  if (path.empty()) return std::nullopt;
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    failed("plugins ", path, ": expected a library that loads, found: ", one_line(dlerror()),
           "; build it on this machine with `make plugins`");
  }
  const auto start = function_of<int32_t (*)()>(handle, "maskrcnn_plugins_register");
  if (start != nullptr && start() < 0) {
    failed(
        "plugins ", path,
        ": expected a library for the TensorRT that is loaded, found one that was compiled for another major version; "
        "build it with `make plugins TENSORRT_ROOT=...` of the TensorRT that is installed");
  }
  PluginLibrary library{path, sha256_of_file(path), nullptr, nullptr, nullptr, missing_functions(handle)};
  if (library.without.empty()) {
    library.prepare_images = function_of<decltype(library.prepare_images)>(handle, "maskrcnn_prepare_images");
    library.encode_masks = function_of<decltype(library.encode_masks)>(handle, "maskrcnn_encode_masks");
    library.error_string = function_of<decltype(library.error_string)>(handle, "maskrcnn_error_string");
  } else {
    library.without = "plugin library: expected the functions of images in version 3, " + library.without +
                      "; build it again with `make plugins`";
  }
  return library;
}

}  // namespace maskrcnn
