// OpenVINO on a CPU: runtime/backends/openvino.py in C++, with the same defaults.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <list>
#include <mutex>
#include <openvino/op/add.hpp>
#include <openvino/op/concat.hpp>
#include <openvino/op/convolution.hpp>
#include <openvino/op/fake_quantize.hpp>
#include <openvino/op/max_pool.hpp>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/intel_cpu/properties.hpp>
#include <sstream>
#include <system_error>

#include "errors.h"
#include "model.h"
#include "onnx_model.h"

namespace maskrcnn {
namespace {

using Clock = std::chrono::steady_clock;

// What a size's own network saves of a batch's time; it is compiled when it would have saved what compiling takes.
constexpr double kSavedShare = 0.15;
constexpr std::size_t kMaxTimed = 256;  // sizes of which it is known how long their batches took
constexpr std::size_t kNumListed = 3;
constexpr std::int64_t kMostOpset = 10'000;
constexpr const char* kAgain = "; export it again with `python -m export.maskrcnn`, or use a newer OpenVINO";

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string openvino_version() {
  const std::string text = ov::get_openvino_version().buildNumber;
  return text.substr(0, text.find('-'));
}

// What Linux says that an x86 processor has; nothing elsewhere.
std::string processor_flags() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("flags", 0) == 0) return line + " ";
  }
  return "";
}

// The calling thread's stack for signal handlers, put back at the end.
class SignalStack {
 public:
  SignalStack() { ::sigaltstack(nullptr, &own_); }
  ~SignalStack() { ::sigaltstack(&own_, nullptr); }
  SignalStack(const SignalStack&) = delete;
  SignalStack& operator=(const SignalStack&) = delete;

 private:
  stack_t own_{};
};

// Loads the plugin for the CPU in a thread of its own. It gives the thread that loads it a stack for signal handlers,
// and puts the one before back when it goes: of two that go in the order they came, the second puts back the first's,
// which is no more, and the next signal ends the process. The thread gives it back before it ends: AddressSanitizer
// unmaps the stack that a thread ends with, as if it were the thread's own.
void load_plugin(ov::Core& core) {
  std::async(std::launch::async, [&] {
    const SignalStack own;
    return core.get_property("CPU", ov::device::full_name);
  }).get();
}

// Whether it is a convolution of images, which have up to 4 channels, with a bias or without.
bool convolves_images(ov::Output<ov::Node> output) {
  if (ov::is_type<ov::op::v1::Add>(output.get_node_shared_ptr())) output = output.get_node()->input_value(0);
  if (!ov::is_type<ov::op::v1::Convolution>(output.get_node_shared_ptr())) return false;
  const ov::Dimension channels = output.get_node()->input_value(1).get_partial_shape()[1];
  return channels.is_static() && channels.get_length() <= 4;
}

// Puts a pooling of one pixel, which changes nothing, before operators that quantize what OpenVINO then gets wrong: a
// Concat, whose inputs it quantizes instead, and a convolution of images, fused with the quantization.
void separate_quantizers(ov::Model& model) {
  for (const auto& node : model.get_ordered_ops()) {
    if (!ov::is_type<ov::op::v0::FakeQuantize>(node)) continue;
    const ov::Output<ov::Node> source = node->input_value(0);
    const ov::Rank rank = source.get_partial_shape().rank();
    if (rank.is_dynamic() || rank != 4) continue;
    if (!ov::is_type<ov::op::v0::Concat>(source.get_node_shared_ptr()) && !convolves_images(source)) continue;
    const auto pooled = std::make_shared<ov::op::v1::MaxPool>(source, ov::Strides{1, 1}, ov::Shape{0, 0},
                                                              ov::Shape{0, 0}, ov::Shape{1, 1});
    node->input(0).replace_source_output(pooled->output(0));
  }
}

void check_bf16(ov::Core& core) {
  const auto capabilities = core.get_property("CPU", ov::device::capabilities);
  const std::string flags = processor_flags();
  const auto has = [&](const char* flag) { return flags.find(std::string(" ") + flag + " ") != std::string::npos; };
  // OpenVINO emulates bfloat16, slowly, where there is AVX-512 without it.
  const bool in_flags = flags.empty() || has("amx_bf16") || has("avx512_bf16") || has("avx_ne_convert");
  if (std::count(capabilities.begin(), capabilities.end(), "BF16") > 0 && in_flags) return;
  failed("precision: expected fp32 on this processor (", one_line(core.get_property("CPU", ov::device::full_name)),
         "), found bf16, for which it has no instructions (AMX-BF16 or AVX512-BF16); leave the precision out");
}

// What a batch is told that did not run.
[[noreturn]] void failed_on(const Geometry& geometry, const std::exception& error) {
  failed("OpenVINO ", openvino_version(), " failed on ", geometry.originals.size(), " images of ",
         geometry.padded.height, "x", geometry.padded.width, " px: ", one_line(error.what()),
         "; if memory ran out, use a smaller batch");
}

ov::AnyMap properties_of(const Options& options) {
  const bool is_exact = options.precision == Precision::kFp32;
  // OpenVINO's own default is bfloat16 where the processor has it.
  ov::AnyMap properties = {
      ov::hint::inference_precision(is_exact ? ov::element::f32 : ov::element::bf16),
      ov::hint::execution_mode(is_exact ? ov::hint::ExecutionMode::ACCURACY : ov::hint::ExecutionMode::PERFORMANCE),
      ov::num_streams(ov::streams::Num(options.streams)),
      // Of several processes with few threads each, all would be bound to the first cores.
      ov::hint::enable_cpu_pinning(options.threads == 0)};
  if (options.threads > 0) properties.insert(ov::inference_num_threads(options.threads));
  if (!options.cache.empty()) properties.insert(ov::cache_dir(options.cache));
  return properties;
}

// A request and what it reads; it keeps its memory from batch to batch.
struct Request {
  std::vector<float> images, image_sizes;
  std::atomic<double> seconds{0};  // of its last run
  ov::InferRequest infer;          // the last: it goes, having waited, before what it reads
};

// A compiled model with requests, one per batch under way.
class Network {
 public:
  explicit Network(ov::CompiledModel compiled) : compiled_(std::move(compiled)) {
    for (const auto& port : compiled_.inputs()) {
      for (const auto& name : port.get_names()) inputs_.push_back(name);
    }
  }

  std::unique_ptr<Request> take() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!idle_.empty()) {
        auto request = std::move(idle_.back());
        idle_.pop_back();
        return request;
      }
    }
    auto request = std::make_unique<Request>();
    request->infer = compiled_.create_infer_request();
    return request;
  }

  void give(std::unique_ptr<Request> request) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(request));
  }

  // Of an input that nobody reads there is none.
  bool has_input(const std::string& name) const { return std::count(inputs_.begin(), inputs_.end(), name) > 0; }

 private:
  ov::CompiledModel compiled_;
  std::vector<std::string> inputs_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Request>> idle_;
};

class OpenVINOModel : public Model, public std::enable_shared_from_this<OpenVINOModel> {
 public:
  OpenVINOModel(const std::string& path, const Options& options, const OnnxFile& file, Metadata metadata);

  std::size_t num_slots() const override { return static_cast<std::size_t>(options_.streams) + 1; }
  std::unique_ptr<Job> submit(const Image* images, std::size_t num_images, const RunOptions& options) const override;

  // Remembers how long a batch of a size took in the network of any size.
  void count(const Size& size, double seconds) const;
  std::vector<Detections> results(ov::InferRequest& request, const Geometry& geometry, float min_score) const;
  bool is_any(const Network* network) const { return network == any_.get(); }

 private:
  struct Sized {
    Size size;
    std::shared_ptr<Network> network;
  };
  struct Timed {
    Size size;
    double seconds;
  };

  void start(const Network& network, Request& request, const Geometry& geometry) const;
  std::shared_ptr<Network> compiled(const std::shared_ptr<ov::Model>& model) const;
  std::shared_ptr<Network> network_for(const Size& size) const;
  std::shared_ptr<Network> at_size(const Size& size) const;

  Options options_;
  std::vector<std::string> names_;  // of the outputs, in the file's order
  std::vector<float> tables_;
  mutable ov::Core core_;
  ov::AnyMap properties_;
  std::shared_ptr<ov::Model> source_;  // of a model of any size
  std::shared_ptr<Network> any_;
  double compile_seconds_ = 0;
  mutable std::mutex mutex_;
  mutable std::list<Sized> own_;    // the one that was used last at the end
  mutable std::list<Timed> timed_;  // likewise
};

class OpenVINOJob : public Job {
 public:
  OpenVINOJob(std::shared_ptr<const OpenVINOModel> model, std::shared_ptr<Network> network,
              std::unique_ptr<Request> request, Geometry geometry, float min_score)
      : model_(std::move(model)),
        network_(std::move(network)),
        request_(std::move(request)),
        geometry_(std::move(geometry)),
        min_score_(min_score) {}

  ~OpenVINOJob() override {
    if (request_ == nullptr) return;
    try {
      request_->infer.wait();
    } catch (...) {
      // Nobody asks for the result.
    }
  }

  std::vector<Detections> wait() override {
    std::unique_ptr<Request> request = std::move(request_);
    try {
      request->infer.wait();
    } catch (const std::exception& error) {
      failed_on(geometry_, error);
    }
    if (model_->is_any(network_.get())) model_->count(geometry_.padded, request->seconds);
    auto found = model_->results(request->infer, geometry_, min_score_);
    network_->give(std::move(request));  // not one that failed
    return found;
  }

 private:
  std::shared_ptr<const OpenVINOModel> model_;
  std::shared_ptr<Network> network_;
  std::unique_ptr<Request> request_;
  Geometry geometry_;
  float min_score_;
};

OpenVINOModel::OpenVINOModel(const std::string& path, const Options& options, const OnnxFile& file, Metadata metadata)
    : Model(std::make_shared<const Metadata>(std::move(metadata))),
      options_(options),
      tables_(normalisation_tables(this->metadata())),
      properties_(properties_of(options)) {
  for (const TensorSpec& output : file.outputs) names_.push_back(output.name);
  load_plugin(core_);
  if (options.precision == Precision::kBf16) check_bf16(core_);
  try {
    source_ = core_.read_model(path);
    separate_quantizers(*source_);
    const auto start = Clock::now();
    any_ = compiled(source_);
    compile_seconds_ = seconds_since(start);
  } catch (const std::exception& error) {
    invalid("model ", path, ": OpenVINO ", openvino_version(), " cannot load it: ", one_line(error.what()), kAgain);
  }
  if (this->metadata().has_size() || options.sizes == 0) {
    options_.sizes = 0;
    source_.reset();
  }
}

std::shared_ptr<Network> OpenVINOModel::compiled(const std::shared_ptr<ov::Model>& model) const {
  return std::make_shared<Network>(core_.compile_model(model, "CPU", properties_));
}

std::shared_ptr<Network> OpenVINOModel::at_size(const Size& size) const {
  const std::shared_ptr<ov::Model> model = source_->clone();
  model->reshape({{"images", ov::PartialShape{-1, metadata().info.channels, size.height, size.width}}});
  return compiled(model);
}

std::shared_ptr<Network> OpenVINOModel::network_for(const Size& size) const {
  if (options_.sizes == 0) return any_;
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto own = std::find_if(own_.begin(), own_.end(), [&](const Sized& sized) { return sized.size == size; });
  if (own != own_.end()) {
    own_.splice(own_.end(), own_, own);
    return own_.back().network;
  }
  const auto timed = std::find_if(timed_.begin(), timed_.end(), [&](const Timed& t) { return t.size == size; });
  if (timed == timed_.end() || timed->seconds * kSavedShare < compile_seconds_) return any_;
  timed_.erase(timed);
  while (own_.size() >= static_cast<std::size_t>(options_.sizes)) own_.pop_front();
  own_.push_back({size, at_size(size)});
  return own_.back().network;
}

void OpenVINOModel::count(const Size& size, double seconds) const {
  if (options_.sizes == 0) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto timed = std::find_if(timed_.begin(), timed_.end(), [&](const Timed& t) { return t.size == size; });
  if (timed == timed_.end()) {
    timed_.push_back({size, seconds});
  } else {
    timed->seconds += seconds;
    timed_.splice(timed_.end(), timed_, timed);
  }
  if (timed_.size() > kMaxTimed) timed_.pop_front();
}

std::unique_ptr<Job> OpenVINOModel::submit(const Image* images, std::size_t num_images,
                                           const RunOptions& options) const {
  Geometry geometry = geometry_of(images, num_images, metadata());
  try {
    std::shared_ptr<Network> network = network_for(geometry.padded);
    std::unique_ptr<Request> request = network->take();
    fill_inputs(images, geometry, metadata(), tables_, request->images, request->image_sizes);
    start(*network, *request, geometry);
    return std::make_unique<OpenVINOJob>(shared_from_this(), std::move(network), std::move(request),
                                         std::move(geometry), options.min_score);
  } catch (const std::exception& error) {
    failed_on(geometry, error);
  }
}

void OpenVINOModel::start(const Network& network, Request& request, const Geometry& geometry) const {
  const auto feed = [&](const char* name, const ov::Shape& shape, std::vector<float>& values) {
    if (network.has_input(name)) request.infer.set_tensor(name, ov::Tensor(ov::element::f32, shape, values.data()));
  };
  const std::size_t batch = geometry.originals.size();
  feed("images",
       {batch, static_cast<std::size_t>(metadata().info.channels), static_cast<std::size_t>(geometry.padded.height),
        static_cast<std::size_t>(geometry.padded.width)},
       request.images);
  feed("image_sizes", {batch, 2}, request.image_sizes);
  const auto begin = Clock::now();
  request.infer.set_callback([&request, begin](std::exception_ptr) { request.seconds = seconds_since(begin); });
  request.infer.start_async();
}

std::vector<Detections> OpenVINOModel::results(ov::InferRequest& request, const Geometry& geometry,
                                               float min_score) const {
  const Outputs outputs = outputs_of(
      metadata(), geometry,
      [&](const std::string& name, const std::string& dtype, std::vector<std::int64_t>& found) -> const void* {
        // By place: what is passed through has the names of several tensors.
        const auto place = std::find(names_.begin(), names_.end(), name) - names_.begin();
        const ov::Tensor tensor = request.get_output_tensor(static_cast<std::size_t>(place));
        const ov::Shape shape = tensor.get_shape();
        found.assign(shape.begin(), shape.end());
        const ov::element::Type type = dtype == "float32" ? ov::element::f32
                                       : dtype == "int32" ? ov::element::i32
                                                          : ov::element::u8;
        if (tensor.get_element_type() == type) return tensor.data();
        failed("model output ", name, ": expected ", type.get_type_name(), ", found ",
               tensor.get_element_type().get_type_name());
      });
  return detections_from(outputs, geometry, shared_metadata(), min_score);
}

// Makes the folder: OpenVINO says of one that it cannot write to what reads as if the model were at fault.
void check_cache(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (!error && ::access(folder.c_str(), W_OK | X_OK) != 0) error = {errno, std::generic_category()};
  if (error) {
    invalid("cache: expected a folder that can be made and written to, found ", folder, ": ", error.message(),
            "; name another, or none");
  }
}

void check_no_functions(const std::string& path, const OnnxFile& file) {
  if (file.functions.empty()) return;
  std::string listed;
  for (std::size_t i = 0; i < std::min(kNumListed, file.functions.size()); ++i) {
    listed += (i == 0 ? "" : ", ") + file.functions[i];
  }
  if (file.functions.size() > kNumListed) listed += joined(" and ", file.functions.size() - kNumListed, " more");
  invalid(
      "model ", path, ": expected standard operators alone, found the local functions ", listed,
      ", which OpenVINO does not survive; write one without them with `python -m export.convert MODEL --for onnx -o "
      "DIR`, or export it with `python -m export.maskrcnn CONFIG CHECKPOINT --for openvino`");
}

// OpenVINO counts down from one that does not exist to one that it has, for hours from the largest.
void check_opsets(const std::string& path, const OnnxFile& file) {
  for (const auto& [domain, version] : file.opsets) {
    if (version >= 0 && version <= kMostOpset) continue;
    invalid("model ", path, ": OpenVINO ", openvino_version(), " cannot load it: opset ",
            domain.empty() ? "ai.onnx" : domain, ": expected a version up to ", kMostOpset, ", found ", version,
            kAgain);
  }
}

}  // namespace

std::shared_ptr<const Model> open_openvino(const std::string& path, const Options& options) {
  check_range("threads", options.threads, 0, kMaxThreads);
  check_range("streams", options.streams, 1, kMaxThreads);
  check_range("sizes", options.sizes, 0, static_cast<int>(kMaxTimed));
  if (!options.cache.empty()) check_cache(options.cache);
  auto [file, metadata] = read_model(path);
  check_no_functions(path, file);
  check_opsets(path, file);
  metadata.info.backend = "OpenVINO " + openvino_version();
  return std::make_shared<const OpenVINOModel>(path, options, file, std::move(metadata));
}

}  // namespace maskrcnn
