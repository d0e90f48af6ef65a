#include "maskrcnn/detector.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>

#include "errors.h"
#include "files.h"
#include "masks.h"
#include "model.h"
#include "prepare.h"

#define MASKRCNN_TEXT_OF(value) #value
#define MASKRCNN_TEXT(value) MASKRCNN_TEXT_OF(value)

namespace maskrcnn {
namespace {

bool is_onnx(const std::string& suffix) { return suffix == ".onnx"; }
bool is_engine(const std::string& suffix) { return suffix == ".engine" || suffix == ".plan" || suffix == ".trt"; }

constexpr BackendEntry kBackends[] = {
#if defined(MASKRCNN_WITH_OPENVINO)
    {"openvino", is_onnx, open_openvino},
#else
    {"openvino", is_onnx, nullptr},
#endif
#if defined(MASKRCNN_WITH_TENSORRT)
    {"tensorrt", is_engine, open_tensorrt},
#else
    {"tensorrt", is_engine, nullptr},
#endif
#if defined(MASKRCNN_WITH_ONNXRUNTIME)
    {"onnxruntime", is_onnx, open_onnxruntime},
#else
    {"onnxruntime", is_onnx, nullptr},
#endif
};

// Refuses what only another backend has, as Python does.
void check_own_options(const std::string& backend, const Options& options) {
  const Options none;
  const bool is_openvino = backend == "openvino", is_tensorrt = backend == "tensorrt";
  const auto check = [&](bool has_it, const char* name, bool is_asked, const auto& value) {
    if (has_it || !is_asked) return;
    invalid(name, ": expected an option of ", backend, ", found one of another backend (", value,
            "); leave it out, or name the backend");
  };
  check(!is_tensorrt, "threads", options.threads != none.threads, options.threads);
  check(is_openvino, "precision", options.precision != none.precision, "'bf16'");
  check(is_openvino, "streams", options.streams != none.streams, options.streams);
  check(is_openvino, "cache", options.cache != none.cache, "'" + options.cache + "'");
  check(is_openvino, "sizes", options.sizes != none.sizes, options.sizes);
  check(is_tensorrt, "device_index", options.device_index != none.device_index, options.device_index);
  check(is_tensorrt, "plugins", options.plugins != none.plugins, "'" + options.plugins + "'");
  check(is_tensorrt, "cuda_graphs", options.cuda_graphs != none.cuda_graphs, "False");
}

std::shared_ptr<const Model> opened(const std::string& path, const Options& options) {
  if (options.batch_size < 0 || options.batch_size > kMaxBatch) {
    invalid("batch_size: expected a whole number from 1 to ", kMaxBatch, ", or 0, found ", options.batch_size);
  }
  check_model_file(path);
  const std::string suffix = suffix_of(path);
  const char* missing = nullptr;
  for (const BackendEntry& backend : kBackends) {
    if (!backend.reads(suffix) || (!options.backend.empty() && options.backend != backend.name)) continue;
    if (backend.open != nullptr) {
      check_own_options(backend.name, options);
      return backend.open(path, options);
    }
    if (missing == nullptr) missing = backend.name;
  }
  if (missing != nullptr) {
    failed("model ", path, ": expected a library that was built with ", missing, ", found one with ", backends(),
           " alone; build it with that too (docs/cpp.md), or take a file of the other kind");
  }
  if (is_onnx(suffix) || is_engine(suffix)) {
    invalid("backend: expected one that reads ", suffix, ", or none, found '", options.backend, "'; this library has ",
            backends());
  }
  invalid("model ", path, ": expected a file .onnx, .engine, .plan or .trt, found the suffix '", suffix,
          "'; name the .onnx or the engine, or rename the file if it is one");
}

// The names of an empty list, for whoever asks beyond its end.
const std::string kNoName;

std::size_t batch_of(const Model& model, int batch_size, std::size_t num_images) {
  std::size_t most = num_images;
  if (batch_size > 0) most = std::min(most, static_cast<std::size_t>(batch_size));
  const int largest = model.metadata().info.largest_batch;
  return largest > 0 ? std::min(most, static_cast<std::size_t>(largest)) : most;
}

}  // namespace

// A model and how its images are divided; what a Detector has.
class OpenModel {
 public:
  OpenModel(std::shared_ptr<const Model> model, int batch_size) : model_(std::move(model)), batch_size_(batch_size) {}

  // Whether this is the process that opened it. One that was forked off has none of its threads, and would wait for
  // them without end, also to destroy it.
  bool is_here() const { return ::getpid() == process_; }

  void check_process(const char* what) const {
    if (is_here()) return;
    failed(what, ": expected to be used in the process that made it, found one forked off it; open the model there");
  }

  const ModelInfo& info() const { return model_->metadata().info; }

  void check(const Image* images, std::size_t num_images, const RunOptions& options) const {
    if (images == nullptr && num_images > 0) invalid("images: expected an array, found a null pointer");
    if (!(options.min_score >= -1e30f)) invalid("min_score: expected a number, found NaN");
    if (options.stream != nullptr && !model_->is_on_device()) {
      invalid("stream: expected none, as ", info().backend, " runs on the CPU, found one; leave it out");
    }
    for (std::size_t i = 0; i < num_images; ++i) {
      check_image(images[i], joined("images[", i, "]"), model_->metadata());
      if (images[i].memory != Memory::kHost && !model_->is_on_device()) {
        invalid("images[", i, "]: expected host memory, as ", info().backend,
                " runs on the CPU, found memory of a device; copy it");
      }
      network_size({images[i].height, images[i].width}, model_->metadata());
    }
  }

  // Calls run(images, how many) for each batch.
  template <typename Run>
  void for_batches(const Image* images, std::size_t num_images, const Run& run) const {
    const std::size_t size = batch_of(*model_, batch_size_, num_images);
    for (std::size_t start = 0; start < num_images; start += size) {
      run(images + start, std::min(size, num_images - start));
    }
  }

  const Model& model() const { return *model_; }

 private:
  std::shared_ptr<const Model> model_;
  int batch_size_;
  pid_t process_ = ::getpid();
};

struct PendingState {
  explicit PendingState(std::shared_ptr<const OpenModel> open) : model(std::move(open)) {}
  PendingState(const PendingState&) = delete;
  PendingState& operator=(const PendingState&) = delete;
  ~PendingState() {
    if (model->is_here()) return;
    for (auto& job : jobs) job.release();  // what it waits for is not in this process
  }

  void finish_first() {
    const std::unique_ptr<Job> job = std::move(jobs.front());
    jobs.pop_front();
    auto found = job->wait();
    std::move(found.begin(), found.end(), std::back_inserter(all));
  }

  std::shared_ptr<const OpenModel> model;
  std::vector<Detections> all;  // of the batches that have ended
  std::deque<std::unique_ptr<Job>> jobs;
  bool is_done = false;
};

namespace {

// Leaves it alone in a process that was forked off.
void forget(const OpenModel* model) {
  if (model->is_here()) delete model;
}

void check_open(const OpenModel* model) {
  if (model == nullptr) invalid("detector: expected an open one, found one that was moved from; use the other");
  model->check_process("detector");
}

// Of more batches than the model has slots, the first ones are waited for: each has the memory of a run.
std::unique_ptr<PendingState> submitted(const std::shared_ptr<const OpenModel>& open, const Image* images,
                                        std::size_t num_images, const RunOptions& options) {
  check_open(open.get());
  open->check(images, num_images, options);
  auto state = std::make_unique<PendingState>(open);
  open->for_batches(images, num_images, [&](const Image* first, std::size_t count) {
    while (state->jobs.size() >= open->model().num_slots()) state->finish_first();
    state->jobs.push_back(open->model().submit(first, count, options));
  });
  return state;
}

std::vector<Detections> finished(PendingState& state) {
  state.is_done = true;
  while (!state.jobs.empty()) state.finish_first();
  return std::move(state.all);
}

}  // namespace

const std::string& Detections::name(std::size_t index) const noexcept {
  if (internals_ == nullptr || index >= labels.size()) return kNoName;
  const auto& classes = internals_->metadata->info.classes;
  const auto label = static_cast<std::size_t>(labels[index]);
  return label < classes.size() ? classes[label] : kNoName;
}

bool Detections::has_masks() const noexcept {
  return internals_ != nullptr && internals_->metadata->mask_mode != MaskMode::kNone;
}

Result<RunLengths> Detections::rle(std::size_t index) const noexcept {
  return guarded([&] {
    check_mask(internals_.get(), index);
    return RunLengths{image_height, image_width, counts_of(*internals_, index)};
  });
}

Result<Mask> Detections::mask(std::size_t index) const noexcept {
  return guarded([&] {
    check_mask(internals_.get(), index);
    return mask_of(*internals_, index);
  });
}

Result<bool> Detections::full_mask(std::size_t index, std::uint8_t* pixels, std::int64_t row_pitch) const noexcept {
  return guarded([&] {
    check_mask(internals_.get(), index);
    const Size& size = internals_->image;
    const std::int64_t pitch = row_pitch == 0 ? size.width : row_pitch;
    if (pixels == nullptr) invalid("pixels: expected memory for the mask, found a null pointer");
    if (pitch < size.width) {
      invalid("row_pitch: expected at least the image's width, ", size.width, ", found ", row_pitch);
    }
    const Mask mask = mask_of(*internals_, index);
    for (std::int64_t y = 0; y < size.height; ++y) {
      std::memset(pixels + y * pitch, 0, static_cast<std::size_t>(size.width));
    }
    for (std::int64_t y = 0; y < mask.height; ++y) {
      std::copy_n(mask.pixels.data() + y * mask.width, mask.width, pixels + (mask.top + y) * pitch + mask.left);
    }
    return true;
  });
}

Pending::Pending(std::unique_ptr<PendingState> state) noexcept : state_(std::move(state)) {}
Pending::Pending(Pending&&) noexcept = default;
Pending& Pending::operator=(Pending&&) noexcept = default;
Pending::~Pending() = default;

Result<std::vector<Detections>> Pending::wait() noexcept {
  return guarded([&] {
    if (state_ == nullptr || state_->is_done) {
      invalid("pending: expected a batch under way, found one that was waited for; submit it again");
    }
    state_->model->check_process("pending");
    return finished(*state_);
  });
}

Detector::Detector(std::shared_ptr<const OpenModel> model) noexcept : model_(std::move(model)) {}
Detector::Detector(Detector&&) noexcept = default;
Detector& Detector::operator=(Detector&&) noexcept = default;
Detector::~Detector() = default;

Result<Detector> Detector::open(const std::string& path, const Options& options) noexcept {
  return guarded([&] { return Detector({new OpenModel(opened(path, options), options.batch_size), forget}); });
}

const ModelInfo& Detector::info() const noexcept {
  static const ModelInfo kMovedFrom;
  return model_ == nullptr ? kMovedFrom : model_->info();
}

Result<std::vector<Detections>> Detector::detect(const Image* images, std::size_t num_images,
                                                 const RunOptions& options) const noexcept {
  return guarded([&] { return finished(*submitted(model_, images, num_images, options)); });
}

Result<Pending> Detector::submit(const Image* images, std::size_t num_images,
                                 const RunOptions& options) const noexcept {
  return guarded([&] { return Pending(submitted(model_, images, num_images, options)); });
}

const char* version() noexcept {
  return MASKRCNN_TEXT(MASKRCNN_VERSION_MAJOR) "." MASKRCNN_TEXT(MASKRCNN_VERSION_MINOR) "." MASKRCNN_TEXT(
      MASKRCNN_VERSION_PATCH);
}

const char* backends() noexcept {
  static const std::string names = [] {
    std::string all;
    for (const BackendEntry& backend : kBackends) {
      if (backend.open != nullptr) all += (all.empty() ? "" : " ") + std::string(backend.name);
    }
    return all;
  }();
  return names.c_str();
}

}  // namespace maskrcnn
