#include "tensorrt_engine.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <mutex>

#define MASKRCNN_TEXT_OF(value) #value
#define MASKRCNN_TEXT(value) MASKRCNN_TEXT_OF(value)

namespace maskrcnn {
namespace {

constexpr const char* kFile = "libnvinfer.so." MASKRCNN_TEXT(NV_TENSORRT_MAJOR);
constexpr const char* kPluginFile = "libnvinfer_plugin.so." MASKRCNN_TEXT(NV_TENSORRT_MAJOR);
constexpr const char* kRebuild =
    "; build the engine with a wider range, `python -m runtime.build --batch ... --size ...`";
constexpr std::size_t kMaxErrors = 3;
constexpr std::size_t kMaxGraphs = 8;  // a set of addresses for each slot

#if NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 1)
std::size_t memory_size(const nvinfer1::ICudaEngine& engine) {
  return static_cast<std::size_t>(engine.getDeviceMemorySizeV2());
}
void set_memory(nvinfer1::IExecutionContext& context, const DeviceBlock& memory) {
  context.setDeviceMemoryV2(memory.as(), static_cast<std::int64_t>(memory.num_bytes()));
}
#else
std::size_t memory_size(const nvinfer1::ICudaEngine& engine) { return engine.getDeviceMemorySize(); }
void set_memory(nvinfer1::IExecutionContext& context, const DeviceBlock& memory) {
  context.setDeviceMemory(memory.as());
}
#endif

nvinfer1::IExecutionContext* new_context(nvinfer1::ICudaEngine& engine) {
#if NV_TENSORRT_MAJOR >= 10
  return engine.createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
#else
  return engine.createExecutionContextWithoutDeviceMemory();
#endif
}

Shape shape_of(const nvinfer1::Dims& dims) { return {dims.d, dims.d + std::max(0, dims.nbDims)}; }

nvinfer1::Dims dims_of(const Shape& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<int>(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) dims.d[i] = static_cast<std::decay_t<decltype(dims.d[0])>>(shape[i]);
  return dims;
}

std::string words(const Shape& shape) {
  std::string out;
  for (const std::int64_t size : shape) out += (out.empty() ? "" : ", ") + std::to_string(size);
  return "(" + out + ")";
}

const char* dtype_name(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return "float32";
    case nvinfer1::DataType::kHALF:
      return "float16";
    case nvinfer1::DataType::kINT8:
      return "int8";
    case nvinfer1::DataType::kINT32:
      return "int32";
    case nvinfer1::DataType::kBOOL:
      return "bool";
    case nvinfer1::DataType::kUINT8:
      return "uint8";
    default:
      return "another type";
  }
}

bool is_within(const Shape& shape, const Shape& low, const Shape& high) {
  if (shape.size() != low.size()) return false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < low[i] || shape[i] > high[i]) return false;
  }
  return true;
}

void* loaded(const char* file) { return dlopen(file, RTLD_NOW | RTLD_GLOBAL); }

template <typename Function>
Function function_of(void* handle, const char* name) {
  return reinterpret_cast<Function>(dlsym(handle, name));
}

std::string version_words(std::int32_t version) {
  // 8503 is 8.5.3; from 10 on, 101303 is 10.13.3.
  const std::int32_t major = version < 10000 ? 1000 : 10000;
  return joined("TensorRT ", version / major, ".", version % major / 100, ".", version % 100);
}

}  // namespace

class TensorRTLibrary::Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      errors_.push_back(one_line(message));
      if (errors_.size() > kMaxErrors) errors_.pop_front();
    } catch (...) {
      // There is no memory for a message.
    }
  }

  std::string errors() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string out;
    for (const std::string& error : errors_) out += (out.empty() ? "" : " | ") + error;
    errors_.clear();
    return out.empty() ? "no message" : out;
  }

 private:
  std::mutex mutex_;
  std::deque<std::string> errors_;
};

TensorRTLibrary& TensorRTLibrary::instance() {
  // Not released at the end of the process: CUDA may be gone by then.
  static TensorRTLibrary* const library = new TensorRTLibrary();
  return *library;
}

// TensorRT's registry logs to the first logger there ever was, so that none is ever released.
TensorRTLibrary::Logger& TensorRTLibrary::logger() {
  static Logger* const instance = new Logger();
  return *instance;
}

TensorRTLibrary::TensorRTLibrary() {
  void* handle = loaded(kFile);
  if (handle == nullptr) {
    failed("TensorRT: expected ", kFile, ", for which this library was built, found: ", one_line(dlerror()),
           "; install it, or put its folder into LD_LIBRARY_PATH");
  }
  const auto create = function_of<void* (*)(void*, std::int32_t)>(handle, "createInferRuntime_INTERNAL");
  const auto version = function_of<std::int32_t (*)()>(handle, "getInferLibVersion");
  if (create == nullptr || version == nullptr)
    failed("TensorRT: expected ", kFile, ", found another library of its name");
  name_ = version_words(version());
  nvinfer1::ILogger* const log = &logger();
  // TensorRT's own plugins, for engines that have some.
  if (void* plugins = loaded(kPluginFile)) {
    const auto start = function_of<bool (*)(void*, const char*)>(plugins, "initLibNvInferPlugins");
    if (start != nullptr) start(log, "");
  }
  runtime_ = static_cast<nvinfer1::IRuntime*>(create(log, NV_TENSORRT_VERSION));
  if (runtime_ == nullptr) {
    failed("TensorRT: expected a runtime of ", name_, ", found: ", errors(),
           "; this library was built with the headers of ", NV_TENSORRT_MAJOR, ".", NV_TENSORRT_MINOR);
  }
}

std::string TensorRTLibrary::errors() { return logger().errors(); }

std::unique_ptr<nvinfer1::ICudaEngine> TensorRTLibrary::engine_from(const std::string& data) {
  const std::lock_guard<std::mutex> lock(reading_);
  errors();
  std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime_->deserializeCudaEngine(data.data(), data.size()));
  if (engine == nullptr) {
    invalid("engine: expected one that ", name_, " reads, found: ", errors(),
            "; build it again on this machine with `python -m runtime.build`");
  }
  return engine;
}

struct TensorRTEngine::Profile {
  struct Graph {
    Addresses addresses;
    int num_calls = 0;
    cudaGraphExec_t executable = nullptr;
  };

  ~Profile() { clear(); }

  // Of the latest shapes only: a graph may read host memory that the context rewrites when its shapes change.
  void clear() {
    for (Graph& graph : graphs) {
      if (graph.executable != nullptr) cudaGraphExecDestroy(graph.executable);
    }
    graphs.clear();
    num_calls = 0;
  }

  bool takes(const Shapes& given) const {
    return std::all_of(given.begin(), given.end(), [&](const auto& input) {
      return low.count(input.first) > 0 && is_within(input.second, low.at(input.first), high.at(input.first));
    });
  }

  // How far shapes are from those that the profile is tuned for.
  std::int64_t distance(const Shapes& given) const {
    std::int64_t sum = 0;
    for (const auto& [name, shape] : given) {
      for (std::size_t i = 0; i < shape.size(); ++i) sum += std::abs(shape[i] - best.at(name)[i]);
    }
    return sum;
  }

  std::unique_ptr<nvinfer1::IExecutionContext> context;
  Shapes low, best, high;
  Shapes shapes, output_shapes;  // as they are set; empty before the first, and where setting them failed
  std::vector<Graph> graphs;
  int num_calls = 0;
  bool cannot_capture = false;
};

TensorRTEngine::TensorRTEngine(const std::string& data, cudaStream_t stream, bool cuda_graphs)
    : engine_(TensorRTLibrary::instance().engine_from(data)), stream_(stream), cuda_graphs_(cuda_graphs) {
  read_tensors();
  open_profiles();
}

TensorRTEngine::~TensorRTEngine() { cudaStreamSynchronize(stream_); }

void TensorRTEngine::read_tensors() {
  for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
    const char* name = engine_->getIOTensorName(i);
    TensorSpec tensor{name, dtype_name(engine_->getTensorDataType(name)), shape_of(engine_->getTensorShape(name))};
    if (!tensor.shape.empty()) tensor.shape[0] = kFree;
    const bool is_input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    (is_input ? inputs_ : outputs_).push_back(std::move(tensor));
  }
}

void TensorRTEngine::open_profiles() {
  memory_.reserve(std::max<std::size_t>(1, memory_size(*engine_)));
  for (int index = 0; index < engine_->getNbOptimizationProfiles(); ++index) {
    auto profile = std::make_unique<Profile>();
    profile->context.reset(new_context(*engine_));
    if (profile->context == nullptr) {
      failed(TensorRTLibrary::instance().name(),
             ": expected memory for an execution context, found too little; use a smaller profile or free the GPU");
    }
    set_memory(*profile->context, memory_);
    if (!profile->context->setOptimizationProfileAsync(index, stream_)) {
      failed(TensorRTLibrary::instance().name(), ": expected profile ", index,
             " for an execution context, found: ", TensorRTLibrary::instance().errors());
    }
    check_cuda(cudaStreamSynchronize(stream_), "to choose a profile");
    for (const TensorSpec& input : inputs_) {
      const auto limit = [&](nvinfer1::OptProfileSelector which) {
        return shape_of(engine_->getProfileShape(input.name.c_str(), index, which));
      };
      profile->low[input.name] = limit(nvinfer1::OptProfileSelector::kMIN);
      profile->best[input.name] = limit(nvinfer1::OptProfileSelector::kOPT);
      profile->high[input.name] = limit(nvinfer1::OptProfileSelector::kMAX);
    }
    const auto images = profile->high.find("images");
    if (images == profile->high.end() || images->second.size() != 4) {
      invalid("engine: expected the input images (B, C, H, W), found none; it is no engine of a model of ours");
    }
    const int low = static_cast<int>(profile->low.at("images")[0]), high = static_cast<int>(images->second[0]);
    least_batch_ = profiles_.empty() ? low : std::min(least_batch_, low);
    largest_batch_ = std::max(largest_batch_, high);
    // The most memory at once, so that a long-running service does not run out of it later.
    for (const auto& [name, shape] : set_shapes(*profile, profile->high)) {
      Shape& most = largest_outputs_[name];
      most.resize(std::max(most.size(), shape.size()));
      for (std::size_t i = 0; i < shape.size(); ++i) most[i] = std::max(most[i], shape[i]);
    }
    largest_images_.resize(4);
    for (std::size_t i = 0; i < 4; ++i) largest_images_[i] = std::max(largest_images_[i], images->second[i]);
    profiles_.push_back(std::move(profile));
  }
}

void TensorRTEngine::check(const Shapes& shapes) const {
  const auto takes = [&](const std::unique_ptr<Profile>& profile) { return profile->takes(shapes); };
  if (std::any_of(profiles_.begin(), profiles_.end(), takes)) return;
  std::string ranges;
  for (const auto& profile : profiles_) {
    ranges +=
        (ranges.empty() ? "" : "; or ") + words(profile->low.at("images")) + " to " + words(profile->high.at("images"));
  }
  invalid("input images: expected a shape from ", ranges, ", found ", words(shapes.at("images")), kRebuild);
}

TensorRTEngine::Profile& TensorRTEngine::profile_for(const Shapes& shapes) {
  if (active_ != nullptr && active_->shapes == shapes) return *active_;
  check(shapes);
  Profile* nearest = nullptr;
  for (const auto& profile : profiles_) {
    if (!profile->takes(shapes)) continue;
    if (nearest == nullptr || profile->distance(shapes) < nearest->distance(shapes)) nearest = profile.get();
  }
  active_ = nearest;
  return *nearest;
}

const Shapes& TensorRTEngine::set_shapes(Profile& profile, const Shapes& shapes) {
  if (profile.shapes == shapes) return profile.output_shapes;
  // What was started with other shapes may still read what the context now rewrites.
  check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  profile.clear();
  profile.shapes.clear();
  for (const auto& [name, shape] : shapes) {
    if (!profile.context->setInputShape(name.c_str(), dims_of(shape))) {
      invalid("input ", name, ": expected a shape that the engine takes, found ", words(shape), kRebuild);
    }
  }
  Shapes found;
  for (const TensorSpec& output : outputs_) {
    const Shape shape = shape_of(profile.context->getTensorShape(output.name.c_str()));
    if (std::any_of(shape.begin(), shape.end(), [](std::int64_t size) { return size < 0; })) {
      invalid("output ", output.name, ": expected a size that follows from the inputs' sizes, found ", words(shape),
              "; give it a fixed number of rows in the ONNX, padded");
    }
    found[output.name] = shape;
  }
  profile.output_shapes = std::move(found);
  profile.shapes = shapes;
  return profile.output_shapes;
}

const Shapes& TensorRTEngine::start(const Shapes& shapes, const Addresses& addresses) {
  Profile& profile = profile_for(shapes);
  const Shapes& outputs = set_shapes(profile, shapes);
  launch(profile, addresses);
  return outputs;
}

void TensorRTEngine::enqueue(Profile& profile, const Addresses& addresses) {
  for (const auto& [name, address] : addresses) {
    if (!profile.context->setTensorAddress(name.c_str(), address)) {
      failed(TensorRTLibrary::instance().name(), ": expected a place for ", name, ", found it refused");
    }
  }
  if (!profile.context->enqueueV3(stream_)) {
    failed(TensorRTLibrary::instance().name(),
           ": expected the engine to run, found: ", TensorRTLibrary::instance().errors());
  }
}

void TensorRTEngine::launch(Profile& profile, const Addresses& addresses) {
  if (!cuda_graphs_ || profile.cannot_capture) return enqueue(profile, addresses);
  auto graph = std::find_if(profile.graphs.begin(), profile.graphs.end(),
                            [&](const Profile::Graph& g) { return g.addresses == addresses; });
  if (graph == profile.graphs.end()) {
    if (profile.graphs.size() >= kMaxGraphs) return enqueue(profile, addresses);
    graph = profile.graphs.insert(profile.graphs.end(), Profile::Graph{addresses});
  }
  // The first call of new shapes, and of new addresses, does work on the host that must not be captured.
  if (graph->executable == nullptr && graph->num_calls > 0 && profile.num_calls >= 2) {
    cudaGraph_t captured = nullptr;
    bool is_captured = cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
    if (is_captured) {
      try {
        enqueue(profile, addresses);
      } catch (const Failure&) {
        is_captured = false;
      }
      is_captured = cudaStreamEndCapture(stream_, &captured) == cudaSuccess && is_captured;
    }
    is_captured = is_captured && cudaGraphInstantiateWithFlags(&graph->executable, captured, 0) == cudaSuccess;
    if (captured != nullptr) cudaGraphDestroy(captured);
    profile.cannot_capture = !is_captured;
    if (!is_captured) {
      graph->executable = nullptr;
      cudaGetLastError();  // it is not the next call's
    }
  }
  ++graph->num_calls;
  ++profile.num_calls;
  if (graph->executable == nullptr) return enqueue(profile, addresses);
  check_cuda(cudaGraphLaunch(graph->executable, stream_), "cudaGraphLaunch");
}

}  // namespace maskrcnn
