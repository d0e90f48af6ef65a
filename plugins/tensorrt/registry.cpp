// What the library shows to the outside. It does not link libnvinfer: it finds the one that the process has loaded.
// - dlopen (Python: ctypes.CDLL) after TensorRT is loaded: the creators are registered. Any TensorRT.
// - IPluginRegistry::loadLibrary (8.6 and later): TensorRT asks for them, through getPluginCreators or getCreators.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <mutex>

#include "plugins/common/export.h"
#include "plugins/decode_detections/decode_detections_op.h"
#include "plugins/decode_proposals/decode_proposals_op.h"
#include "plugins/grid_sample/grid_sample_op.h"
#include "plugins/grouped_nms/grouped_nms_op.h"
#include "plugins/multi_level_roi_align/multi_level_roi_align_op.h"
#include "plugins/padded_space_to_depth/padded_space_to_depth_op.h"
#include "plugins/paste_masks/paste_masks_op.h"
#include "plugins/select_masks/select_masks_op.h"
#include "plugins/select_top/select_top_op.h"
#include "plugins/tensorrt/translate.h"

#if NV_TENSORRT_MAJOR >= 10
#include "plugins/tensorrt/plugin_v3.h"
#else
#include "plugins/tensorrt/plugin_v2.h"
#endif

#define MASKRCNN_TEXT_(x) #x
#define MASKRCNN_TEXT(x) MASKRCNN_TEXT_(x)

#if NV_TENSORRT_MAJOR > 8 || NV_TENSORRT_MINOR >= 6
#define MASKRCNN_HAS_LOGGER_FINDER 1
#else
#define MASKRCNN_HAS_LOGGER_FINDER 0
#endif

namespace maskrcnn {
namespace {

#if NV_TENSORRT_MAJOR >= 10
using Creator = CreatorV3;
using CreatorInterface = nvinfer1::IPluginCreatorInterface;
// No one-byte type but int8 is documented for the output of an IPluginV3.
constexpr const char* kMaskOutputType = "int8";
#else
using Creator = CreatorV2;
using CreatorInterface = nvinfer1::IPluginCreator;
// All that 8.5 takes from a plugin without further settings: it refuses bool, uint8, and int8 unless the network is
// built with BuilderFlag.INT8 and the tensor has a dynamic range.
constexpr const char* kMaskOutputType = "float32";
#endif

#if MASKRCNN_HAS_LOGGER_FINDER
nvinfer1::ILoggerFinder* logger_finder = nullptr;
#endif

// Python's tensorrt loads libnvinfer for itself alone (RTLD_LOCAL), where a plain search for the symbol does not look.
// The major version in the name keeps a library for TensorRT 8 out of the registry of TensorRT 10.
void* tensorrt_symbol(const char* name) {
  constexpr const char* kNames[] = {"libnvinfer.so." MASKRCNN_TEXT(NV_TENSORRT_MAJOR),
                                    "libnvinfer_lean.so." MASKRCNN_TEXT(NV_TENSORRT_MAJOR),
                                    "libnvinfer_dispatch.so." MASKRCNN_TEXT(NV_TENSORRT_MAJOR)};
  for (const char* library : kNames) {
    void* handle = dlopen(library, RTLD_NOLOAD | RTLD_LAZY);
    if (handle == nullptr) continue;
    void* symbol = dlsym(handle, name);
    dlclose(handle);
    if (symbol != nullptr) return symbol;
  }
  return nullptr;
}

nvinfer1::IPluginRegistry* registry() {
  using Get = nvinfer1::IPluginRegistry* (*)();
  const auto get = reinterpret_cast<Get>(tensorrt_symbol("getPluginRegistry"));
  return get == nullptr ? nullptr : get();
}

nvinfer1::ILogger* logger() {
#if MASKRCNN_HAS_LOGGER_FINDER
  if (logger_finder != nullptr) return logger_finder->findLogger();
#endif
  using Get = nvinfer1::ILogger* (*)();
  const auto get = reinterpret_cast<Get>(tensorrt_symbol("getLogger"));
  return get == nullptr ? nullptr : get();
}

class Creators {
 public:
  Creators() {
    for (const OpType& type : op_types()) {
      creators_.push_back(std::make_unique<Creator>(type));
      interfaces_.push_back(creators_.back().get());
    }
  }

  CreatorInterface* const* list(int32_t& count) const {
    count = static_cast<int32_t>(interfaces_.size());
    return interfaces_.data();
  }

  // Returns how many of them are registered by this library, -1 without TensorRT.
  int add_to_registry() {
    const std::lock_guard<std::mutex> lock(mutex_);
    nvinfer1::IPluginRegistry* const target = registry();
    if (target == nullptr) return -1;
    if (num_registered_ > 0) return num_registered_;
    for (CreatorInterface* creator : interfaces_) num_registered_ += target->registerCreator(*creator, "") ? 1 : 0;
    return num_registered_;
  }

  // loadLibrary registers the creators itself, and complains about those that are there already.
  void remove_from_registry() {
    const std::lock_guard<std::mutex> lock(mutex_);
    nvinfer1::IPluginRegistry* const target = num_registered_ > 0 ? registry() : nullptr;
    if (target == nullptr) return;
    for (CreatorInterface* creator : interfaces_) target->deregisterCreator(*creator);
    num_registered_ = 0;
  }

 private:
  std::vector<std::unique_ptr<Creator>> creators_;
  std::vector<CreatorInterface*> interfaces_;
  std::mutex mutex_;
  int num_registered_ = 0;
};

// Never destroyed: TensorRT's registry may outlive this library's static objects.
Creators& creators() {
  static Creators* const instance = new Creators;
  return *instance;
}

CreatorInterface* const* creators_for_tensorrt(int32_t& count) noexcept {
  count = 0;
  return guarded<CreatorInterface* const*>("maskrcnn_plugins", nullptr, [&] {
    creators().remove_from_registry();
    return creators().list(count);
  });
}

}  // namespace

const std::vector<OpType>& op_types() {
  static const auto* const types =
      new std::vector<OpType>{multi_level_roi_align_type(), grouped_nms_type(), paste_masks_type(kMaskOutputType),
                              mmcv_roi_align_type(), grid_sampler_type(), select_top_type(),
                              decode_proposals_type(), decode_detections_type(), select_masks_type(),
                              padded_space_to_depth_type()};
  return *types;
}

void log_error(const char* name, const char* message) noexcept {
  char text[1024];
  // Messages of the operators' own checks begin with the operator.
  const bool named = std::strncmp(message, name, std::strlen(name)) == 0;
  std::snprintf(text, sizeof(text), "maskrcnn_plugins: %s%s%s", named ? "" : name, named ? "" : ": ", message);
  nvinfer1::ILogger* const target = logger();
  if (target != nullptr) {
    target->log(nvinfer1::ILogger::Severity::kERROR, text);
  } else {
    std::fprintf(stderr, "%s\n", text);
  }
}

}  // namespace maskrcnn

// The TensorRT that the library was compiled for, as NV_TENSORRT_VERSION counts: 8503 is 8.5.3, 9301 is 9.3.1, 101301 is
// 10.13.1.
MASKRCNN_EXPORT int maskrcnn_plugins_tensorrt_version() {
  constexpr int kMajor = NV_TENSORRT_MAJOR >= 10 ? 10000 : 1000;
  return NV_TENSORRT_MAJOR * kMajor + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
}

// Registers the creators if they are not registered yet. Returns how many are; -1: no TensorRT of the major version
// that the library was compiled for is loaded in this process.
MASKRCNN_EXPORT int maskrcnn_plugins_register() {
  return maskrcnn::guarded("maskrcnn_plugins", -1, [] { return maskrcnn::creators().add_to_registry(); });
}

#if NV_TENSORRT_MAJOR >= 10
MASKRCNN_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  return maskrcnn::creators_for_tensorrt(count);
}
#else
MASKRCNN_EXPORT nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) {
  return maskrcnn::creators_for_tensorrt(count);
}
#endif

#if MASKRCNN_HAS_LOGGER_FINDER
MASKRCNN_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { maskrcnn::logger_finder = finder; }
#endif

__attribute__((constructor)) static void register_when_loaded() { maskrcnn_plugins_register(); }
