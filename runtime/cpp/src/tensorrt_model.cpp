// TensorRT: batches over one engine, several under way; while one computes, others are copied in and out. Images are
// prepared and masks encoded on the device where the plugin library has the functions and the model's steps allow it,
// else on the host (runtime/backends/tensorrt.py, runtime/device/).
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <future>
#include <mutex>
#include <optional>
#include <system_error>

#include "cuda_objects.h"
#include "model.h"
#include "outputs.h"
#include "plugin_library.h"
#include "plugins/cast_masks/cast_masks_math.h"
#include "sidecar.h"
#include "tensorrt_engine.h"

namespace maskrcnn {
namespace {

constexpr std::size_t kNumSlots = 3;
constexpr std::size_t kBytesPerMask = 512;  // room for run lengths at first
constexpr std::size_t kAlignment = 256;

// Copying pixels into page-locked memory: a few threads take all the bandwidth of the host's memory. So many bytes take
// one thread as long as starting the others.
constexpr std::size_t kNumStagers = 4;
constexpr std::size_t kStagedAlone = std::size_t{2} << 20;

// Calls run(i) for each of `count` in so many threads, this one among them; in fewer where no more can be started. What
// one of them throws is thrown when all have ended.
template <typename Run>
void in_threads(std::size_t count, std::size_t num_threads, const Run& run) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++) run(i);
  };
  std::vector<std::future<void>> others;  // whose destructors wait
  try {
    while (others.size() + 1 < num_threads) others.push_back(std::async(std::launch::async, work));
  } catch (const std::system_error&) {
    // Those that there are do it.
  }
  work();
  for (std::future<void>& other : others) other.get();
}

std::size_t aligned(std::size_t num_bytes) { return (num_bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::size_t num_values(const Shape& shape) {
  std::size_t product = 1;
  for (const std::int64_t size : shape) product *= static_cast<std::size_t>(size);
  return product;
}

// A batch that was given to a slot, and what became of it.
struct Batch {
  Geometry geometry;
  float min_score = 0;
  bool is_done = false;
  std::vector<Detections> found;
  std::optional<Failure> failure;
};

// The memory of one batch, and a stream for its copies.
struct Slot {
  Stream stream;
  Event copied, computed, done;
  DeviceBlock pixels, sizes, results, masks, strings;
  PinnedBlock host_pixels, host_sizes, host_results, host_masks, host_strings;
  std::size_t expected_bytes = 0;  // of run lengths, copied before it is known how many there are
  std::shared_ptr<Batch> batch;    // under way
};

// Where arrays lie in a slot's results.
struct ResultLayout {
  std::size_t num_dets, dets, labels, keypoints, offsets, lengths, used, num_bytes;
};

class TensorRTModel : public Model, public std::enable_shared_from_this<TensorRTModel> {
 public:
  TensorRTModel(std::shared_ptr<const Metadata> metadata, const Options& options, const std::string& path,
                const std::string& data, std::optional<PluginLibrary> plugins);
  ~TensorRTModel() override;

  bool is_on_device() const override { return true; }
  std::size_t num_slots() const override { return kNumSlots; }
  int largest_batch() const { return engine_->largest_batch(); }
  std::unique_ptr<Job> submit(const Image* images, std::size_t num_images, const RunOptions& options) const override;
  // Waits for the batch, in whatever slot it is.
  std::vector<Detections> wait(Batch& batch) const;
  void forget(Batch& batch) const noexcept;

 private:
  void check(const std::string& path) const;
  void plan();
  void start(Slot& slot, const Image* images, std::size_t num_images, const RunOptions& options) const;
  std::vector<SourceImage> copy_pixels(Slot& slot, const Image* images, std::size_t num_images) const;
  void prepare_on_host(Slot& slot, const Image* images, std::size_t num_images, std::size_t batch) const;
  void prepare_on_device(const std::vector<SourceImage>& sources, const Geometry& geometry) const;
  void copy_sizes(Slot& slot, std::size_t batch) const;
  void encode(Slot& slot, cudaStream_t stream) const;
  void reserve_strings(Slot& slot, std::size_t num_bytes) const;
  void copy_strings(Slot& slot, std::size_t start, std::size_t stop) const;
  void copy_out(Slot& slot) const;
  void finish(Slot& slot) const;
  std::vector<Detections> fetched(Slot& slot) const;
  std::vector<std::string> fetched_strings(Slot& slot) const;
  void cast_masks(Slot& slot, Outputs& outputs, std::vector<std::uint8_t>& bytes) const;
  Slot& next_slot() const;
  Addresses addresses(const Slot& slot) const;
  const std::string& mask_dtype() const;
  std::size_t mask_value_bytes() const { return mask_dtype() == "float32" ? 4 : 1; }

  int device_;
  std::vector<float> tables_;
  std::optional<PluginLibrary> plugins_;
  bool prepares_on_device_ = false, encodes_on_device_ = false;
  ResultLayout layout_{};
  mutable std::mutex mutex_;
  mutable std::unique_ptr<Stream> compute_;
  mutable std::unique_ptr<TensorRTEngine> engine_;
  mutable DeviceBlock device_tables_, images_;
  mutable Shapes output_shapes_;
  mutable std::vector<std::unique_ptr<Slot>> slots_;  // the one that has been used the longest ago first
};

class TensorRTJob : public Job {
 public:
  TensorRTJob(std::shared_ptr<const TensorRTModel> model, std::shared_ptr<Batch> batch)
      : model_(std::move(model)), batch_(std::move(batch)) {}
  ~TensorRTJob() override { model_->forget(*batch_); }
  std::vector<Detections> wait() override { return model_->wait(*batch_); }

 private:
  std::shared_ptr<const TensorRTModel> model_;
  std::shared_ptr<Batch> batch_;
};

TensorRTModel::TensorRTModel(std::shared_ptr<const Metadata> metadata, const Options& options, const std::string& path,
                             const std::string& data, std::optional<PluginLibrary> plugins)
    : Model(std::move(metadata)),
      device_(options.device_index),
      tables_(normalisation_tables(this->metadata())),
      plugins_(std::move(plugins)) {
  compute_ = std::make_unique<Stream>();
  engine_ = std::make_unique<TensorRTEngine>(data, compute_->get(), options.cuda_graphs);
  check(path);
  plan();
  images_.reserve(4 * num_values(engine_->largest_images()));
  if (!prepares_on_device_) return;
  device_tables_.reserve(tables_.size() * sizeof(float));
  check_cuda(cudaMemcpy(device_tables_.as(), tables_.data(), tables_.size() * sizeof(float), cudaMemcpyHostToDevice),
             "cudaMemcpy");
}

TensorRTModel::~TensorRTModel() {
  int before = 0;
  cudaGetDevice(&before);
  cudaSetDevice(device_);
  for (const auto& slot : slots_) cudaStreamSynchronize(slot->stream.get());
  slots_.clear();
  engine_.reset();
  compute_.reset();
  cudaSetDevice(before);
}

// Masks may have another type inside: TensorRT 8 has no uint8.
void TensorRTModel::check(const std::string& path) const {
  const auto expected = contract_outputs(metadata());
  auto found = engine_->outputs();
  for (TensorSpec& output : found) {
    const bool is_any = output.name == "masks" && metadata().mask_mode == MaskMode::kFull;
    if (is_any && (output.dtype == "float32" || output.dtype == "int8" || output.dtype == "bool"))
      output.dtype = "uint8";
  }
  check_contract("model " + path, "input", contract_inputs(metadata()), engine_->inputs());
  check_contract("model " + path, "output", expected, found);
}

const std::string& TensorRTModel::mask_dtype() const {
  static const std::string kNone;
  for (const TensorSpec& output : engine_->outputs()) {
    if (output.name == "masks") return output.dtype;
  }
  return kNone;
}

void TensorRTModel::plan() {
  const bool has_functions = plugins_ && plugins_->without.empty();
  const auto& steps = metadata().steps;
  // A resize alone, of images in colour, is what the kernel does.
  const bool is_resize =
      steps.empty() || (steps.size() == 1 && dynamic_cast<const ResizeStep*>(steps[0].get()) != nullptr);
  const bool is_colour = !metadata().loads_grey && !metadata().loads_unchanged && !metadata().loads_float;
  prepares_on_device_ = has_functions && is_resize && is_colour;
  encodes_on_device_ = prepares_on_device_ && metadata().mask_mode == MaskMode::kCrop;
  const auto batch = static_cast<std::size_t>(engine_->largest_batch());
  const auto rows = static_cast<std::size_t>(metadata().info.max_detections);
  std::size_t end = 0;
  const auto place = [&](std::size_t num_bytes) {
    const std::size_t start = end;
    end += aligned(num_bytes);
    return start;
  };
  layout_.num_dets = place(batch * 4);
  layout_.dets = place(batch * rows * 5 * 4);
  layout_.labels = place(batch * rows * 4);
  layout_.keypoints = place(batch * rows * metadata().info.keypoints.size() * 3 * 4);
  layout_.offsets = place(batch * rows * 8);
  layout_.lengths = place(batch * rows * 4);
  layout_.used = place(8);
  layout_.num_bytes = end;
}

Slot& TensorRTModel::next_slot() const {
  if (slots_.size() < kNumSlots && (slots_.empty() || slots_.front()->batch != nullptr)) {
    auto slot = std::make_unique<Slot>();
    slot->results.reserve(layout_.num_bytes);
    slot->host_results.reserve(layout_.num_bytes);
    const std::size_t sizes = static_cast<std::size_t>(engine_->largest_batch()) * 2 * sizeof(float);
    slot->sizes.reserve(sizes);
    slot->host_sizes.reserve(sizes);
    if (metadata().mask_mode != MaskMode::kNone) {
      slot->masks.reserve(mask_value_bytes() * num_values(engine_->largest_outputs().at("masks")));
    }
    if (encodes_on_device_) {
      const auto rows = static_cast<std::size_t>(engine_->largest_batch() * metadata().info.max_detections);
      reserve_strings(*slot, kBytesPerMask * rows);
    }
    slots_.insert(slots_.begin(), std::move(slot));
  }
  Slot& slot = *slots_.front();
  finish(slot);
  std::rotate(slots_.begin(), slots_.begin() + 1, slots_.end());
  return slot;
}

std::unique_ptr<Job> TensorRTModel::submit(const Image* images, std::size_t num_images,
                                           const RunOptions& options) const {
  auto batch = std::make_shared<Batch>();
  batch->geometry = geometry_of(images, num_images, metadata());
  batch->min_score = options.min_score;
  const std::lock_guard<std::mutex> lock(mutex_);
  const ActiveDevice active(device_);
  const auto count = static_cast<std::int64_t>(std::max(num_images, static_cast<std::size_t>(engine_->least_batch())));
  const Size& padded = batch->geometry.padded;
  engine_->check(
      {{"images", {count, metadata().info.channels, padded.height, padded.width}}, {"image_sizes", {count, 2}}});
  Slot& slot = next_slot();
  slot.batch = batch;
  try {
    start(slot, images, num_images, options);
  } catch (...) {
    // What did get on its way still reads the slot's memory.
    cudaStreamSynchronize(slot.stream.get());
    cudaStreamSynchronize(compute_->get());
    slot.batch = nullptr;
    throw;
  }
  return std::make_unique<TensorRTJob>(shared_from_this(), std::move(batch));
}

void TensorRTModel::start(Slot& slot, const Image* images, std::size_t num_images, const RunOptions& options) const {
  const Geometry& geometry = slot.batch->geometry;
  // A batch below the engine's least is filled up with its last image.
  const std::size_t batch = std::max(num_images, static_cast<std::size_t>(engine_->least_batch()));
  const auto count = static_cast<std::int64_t>(batch);
  if (options.stream != nullptr) {
    Event given;
    given.record(static_cast<cudaStream_t>(options.stream));
    given.hold(slot.stream.get());
  }
  copy_sizes(slot, batch);
  if (prepares_on_device_) {
    std::vector<SourceImage> sources = copy_pixels(slot, images, num_images);
    slot.copied.record(slot.stream.get());
    slot.copied.hold(compute_->get());
    sources.resize(batch, sources.back());
    prepare_on_device(sources, geometry);
  } else {
    prepare_on_host(slot, images, num_images, batch);
  }
  const Shapes shapes = {{"images", {count, metadata().info.channels, geometry.padded.height, geometry.padded.width}},
                         {"image_sizes", {count, 2}}};
  output_shapes_ = engine_->start(shapes, addresses(slot));
  if (encodes_on_device_) encode(slot, compute_->get());
  slot.computed.record(compute_->get());
  slot.computed.hold(slot.stream.get());
  copy_out(slot);
}

void TensorRTModel::copy_sizes(Slot& slot, std::size_t batch) const {
  const auto& contents = slot.batch->geometry.contents;
  float* sizes = slot.host_sizes.as<float>();
  for (std::size_t i = 0; i < batch; ++i) {
    const Size& size = contents[std::min(i, contents.size() - 1)];
    sizes[2 * i] = static_cast<float>(size.height);
    sizes[2 * i + 1] = static_cast<float>(size.width);
  }
  check_cuda(
      cudaMemcpyAsync(slot.sizes.as(), sizes, batch * 2 * sizeof(float), cudaMemcpyHostToDevice, slot.stream.get()),
      "cudaMemcpyAsync");
}

// Images in host memory go through page-locked memory to the device, large batches by several threads; those on the
// device are read where they lie.
std::vector<SourceImage> TensorRTModel::copy_pixels(Slot& slot, const Image* images, std::size_t num_images) const {
  const auto row_bytes = [](const Image& image) { return static_cast<std::size_t>(image.width) * 3; };
  std::vector<SourceImage> sources;
  std::vector<std::size_t> offsets, on_host;
  std::size_t num_bytes = 0;
  for (std::size_t i = 0; i < num_images; ++i) {
    const Image& image = images[i];
    const Size& content = slot.batch->geometry.contents[i];
    const std::int64_t pitch = image.row_pitch == 0 ? static_cast<std::int64_t>(row_bytes(image)) : image.row_pitch;
    sources.push_back({image.pixels, pitch, image.height, image.width, static_cast<std::int32_t>(content.height),
                       static_cast<std::int32_t>(content.width)});
    offsets.push_back(num_bytes);
    if (image.memory != Memory::kHost) continue;
    on_host.push_back(i);
    num_bytes += aligned(row_bytes(image) * static_cast<std::size_t>(image.height));
  }
  slot.pixels.reserve(num_bytes);
  slot.host_pixels.reserve(num_bytes);
  const std::size_t num_threads = num_bytes > kStagedAlone ? std::min(kNumStagers, on_host.size()) : 1;
  in_threads(on_host.size(), num_threads, [&](std::size_t place) {
    const ActiveDevice active(device_);
    const std::size_t i = on_host[place], row = row_bytes(images[i]), rows = static_cast<std::size_t>(images[i].height);
    auto* target = slot.host_pixels.as<std::uint8_t>(offsets[i]);
    for (std::size_t y = 0; y < rows; ++y) {
      std::memcpy(target + y * row, images[i].pixels + static_cast<std::int64_t>(y) * sources[i].row_stride, row);
    }
    sources[i].pixels = slot.pixels.as<std::uint8_t>(offsets[i]);
    sources[i].row_stride = static_cast<std::int64_t>(row);
    check_cuda(
        cudaMemcpyAsync(slot.pixels.as(offsets[i]), target, row * rows, cudaMemcpyHostToDevice, slot.stream.get()),
        "cudaMemcpyAsync");
  });
  return sources;
}

void TensorRTModel::prepare_on_device(const std::vector<SourceImage>& sources, const Geometry& geometry) const {
  PrepareImagesArguments arguments{};
  arguments.images = sources.data();
  arguments.batch = static_cast<std::int32_t>(sources.size());
  arguments.height = static_cast<std::int32_t>(geometry.padded.height);
  arguments.width = static_cast<std::int32_t>(geometry.padded.width);
  arguments.tables = device_tables_.as<float>();
  arguments.reverse_channels = metadata().is_rgb ? 1 : 0;
  arguments.pad_value = static_cast<float>(metadata().pad_value);
  arguments.output = images_.as<float>();
  const int status = plugins_->prepare_images(&arguments, compute_->get());
  if (status != 0) {
    failed("prepare_images: expected the kernels to start, found ", plugins_->error_string(status), " (CUDA error ",
           status, ")");
  }
}

// The network's input is made in page-locked memory. Images on the device are copied to the host first, and waited for.
void TensorRTModel::prepare_on_host(Slot& slot, const Image* images, std::size_t num_images, std::size_t batch) const {
  const Size& padded = slot.batch->geometry.padded;
  const auto image_values = static_cast<std::size_t>(metadata().info.channels * padded.height * padded.width);
  slot.host_pixels.reserve(batch * image_values * sizeof(float));
  auto* values = slot.host_pixels.as<float>();
  std::fill_n(values, num_images * image_values, static_cast<float>(metadata().pad_value));
  for (std::size_t i = 0; i < num_images; ++i) {
    Image image = images[i];
    std::vector<std::uint8_t> copy;
    if (image.memory == Memory::kDevice) {
      const std::size_t row = static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.channels);
      const std::size_t pitch = image.row_pitch == 0 ? row : static_cast<std::size_t>(image.row_pitch);
      copy.resize(row * static_cast<std::size_t>(image.height));
      check_cuda(cudaMemcpy2DAsync(copy.data(), row, image.pixels, pitch, row, static_cast<std::size_t>(image.height),
                                   cudaMemcpyDeviceToHost, slot.stream.get()),
                 "cudaMemcpy2DAsync");
      slot.stream.synchronize();
      image.pixels = copy.data();
      image.row_pitch = 0;
    }
    prepare(image, metadata(), tables_, padded, values + i * image_values);
  }
  for (std::size_t i = num_images; i < batch; ++i) {
    std::copy_n(values + (num_images - 1) * image_values, image_values, values + i * image_values);
  }
  slot.copied.record(slot.stream.get());
  slot.copied.hold(compute_->get());
  check_cuda(cudaMemcpyAsync(images_.as(), values, batch * image_values * sizeof(float), cudaMemcpyHostToDevice,
                             compute_->get()),
             "cudaMemcpyAsync");
}

Addresses TensorRTModel::addresses(const Slot& slot) const {
  Addresses found = {{"images", images_.as()},
                     {"image_sizes", slot.sizes.as()},
                     {"num_dets", slot.results.as(layout_.num_dets)},
                     {"dets", slot.results.as(layout_.dets)},
                     {"labels", slot.results.as(layout_.labels)}};
  if (!metadata().info.keypoints.empty()) found["keypoints"] = slot.results.as(layout_.keypoints);
  if (metadata().mask_mode != MaskMode::kNone) found["masks"] = slot.masks.as();
  return found;
}

void TensorRTModel::encode(Slot& slot, cudaStream_t stream) const {
  std::vector<TargetImage> targets;
  for (const Size& size : slot.batch->geometry.originals) {
    const Point scale = final_scale_factor(size, metadata().steps);
    targets.push_back({static_cast<std::int32_t>(size.height), static_cast<std::int32_t>(size.width),
                       static_cast<float>(scale.x), static_cast<float>(scale.y)});
  }
  const Shape& masks = engine_->largest_outputs().at("masks");
  EncodeMasksArguments arguments{};
  arguments.images = targets.data();
  arguments.batch = static_cast<std::int32_t>(targets.size());
  arguments.max_dets = metadata().info.max_detections;
  arguments.masks = slot.masks.as<float>();
  arguments.dets = slot.results.as<float>(layout_.dets);
  arguments.num_dets = slot.results.as<std::int32_t>(layout_.num_dets);
  arguments.mask_height = static_cast<std::int32_t>(masks[2]);
  arguments.mask_width = static_cast<std::int32_t>(masks[3]);
  arguments.threshold = static_cast<float>(metadata().mask_threshold);
  arguments.min_score = slot.batch->min_score;
  arguments.strings = slot.strings.as<std::uint8_t>();
  arguments.capacity = static_cast<std::int64_t>(slot.strings.num_bytes());
  arguments.offsets = slot.results.as<std::int64_t>(layout_.offsets);
  arguments.lengths = slot.results.as<std::int32_t>(layout_.lengths);
  arguments.used = slot.results.as<std::int64_t>(layout_.used);
  const int status = plugins_->encode_masks(&arguments, stream);
  if (status != 0) {
    failed("encode_masks: expected the kernels to start, found ", plugins_->error_string(status), " (CUDA error ",
           status, ")");
  }
}

void TensorRTModel::reserve_strings(Slot& slot, std::size_t num_bytes) const {
  slot.expected_bytes = 0;  // without memory for either block, nothing is copied before there is
  slot.strings.reserve(num_bytes);
  slot.host_strings.reserve(num_bytes);
  slot.expected_bytes = num_bytes;
}

void TensorRTModel::copy_strings(Slot& slot, std::size_t start, std::size_t stop) const {
  if (start == stop) return;
  check_cuda(cudaMemcpyAsync(slot.host_strings.as(start), slot.strings.as(start), stop - start, cudaMemcpyDeviceToHost,
                             slot.stream.get()),
             "cudaMemcpyAsync");
}

void TensorRTModel::copy_out(Slot& slot) const {
  const auto copy = [&](void* target, const void* source, std::size_t num_bytes) {
    check_cuda(cudaMemcpyAsync(target, source, num_bytes, cudaMemcpyDeviceToHost, slot.stream.get()),
               "cudaMemcpyAsync");
  };
  copy(slot.host_results.as(), slot.results.as(), layout_.num_bytes);
  if (metadata().mask_mode != MaskMode::kNone && !encodes_on_device_) {
    const std::size_t num_bytes = mask_value_bytes() * num_values(output_shapes_.at("masks"));
    slot.host_masks.reserve(num_bytes);
    copy(slot.host_masks.as(), slot.masks.as(), num_bytes);
  }
  if (encodes_on_device_) copy_strings(slot, 0, slot.expected_bytes);
  slot.done.record(slot.stream.get());
}

// Waits for the slot's batch, if there is one, and puts its results, or why there are none, into it.
void TensorRTModel::finish(Slot& slot) const {
  if (slot.batch == nullptr) return;
  Batch& batch = *slot.batch;
  try {
    slot.done.wait();
    batch.found = fetched(slot);
  } catch (const Failure& failure) {
    batch.failure = failure;
  } catch (const std::exception& error) {
    batch.failure = Failure{ErrorCode::kFailed, one_line(error.what())};
  }
  batch.is_done = true;
  slot.batch = nullptr;
}

std::vector<Detections> TensorRTModel::fetched(Slot& slot) const {
  const Batch& batch = *slot.batch;
  Outputs outputs;
  outputs.num_dets = slot.host_results.as<std::int32_t>(layout_.num_dets);
  outputs.dets = slot.host_results.as<float>(layout_.dets);
  outputs.labels = slot.host_results.as<std::int32_t>(layout_.labels);
  if (!metadata().info.keypoints.empty()) outputs.keypoints = slot.host_results.as<float>(layout_.keypoints);
  std::vector<std::string> strings;
  std::vector<std::uint8_t> bytes;
  if (encodes_on_device_) {
    strings = fetched_strings(slot);
    outputs.counts = &strings;
  } else if (metadata().mask_mode == MaskMode::kFull) {
    outputs.cells = batch.geometry.padded;
    cast_masks(slot, outputs, bytes);
  } else if (metadata().mask_mode != MaskMode::kNone) {
    const Shape& largest = engine_->largest_outputs().at("masks");
    // Of a grid the cells follow from the input's size.
    const bool is_grid = metadata().mask_mode == MaskMode::kGrid;
    const Shape& images = engine_->largest_images();
    outputs.cells = {is_grid ? largest[2] * batch.geometry.padded.height / images[2] : largest[2],
                     is_grid ? largest[3] * batch.geometry.padded.width / images[3] : largest[3]};
    outputs.probabilities = slot.host_masks.as<float>();
  }
  return detections_from(outputs, batch.geometry, shared_metadata(), batch.min_score);
}

void TensorRTModel::cast_masks(Slot& slot, Outputs& outputs, std::vector<std::uint8_t>& bytes) const {
  if (mask_dtype() != "float32") {
    outputs.pixels = slot.host_masks.as<std::uint8_t>();
    return;
  }
  const auto rows = slot.batch->geometry.originals.size() * static_cast<std::size_t>(metadata().info.max_detections);
  bytes.resize(rows * static_cast<std::size_t>(outputs.cells.height * outputs.cells.width));
  const auto* values = slot.host_masks.as<float>();
  std::transform(values, values + bytes.size(), bytes.begin(), byte_from_float);
  outputs.pixels = bytes.data();
}

std::vector<std::string> TensorRTModel::fetched_strings(Slot& slot) const {
  const auto rows = slot.batch->geometry.originals.size() * static_cast<std::size_t>(metadata().info.max_detections);
  const auto num_used = [&] { return static_cast<std::size_t>(*slot.host_results.as<std::int64_t>(layout_.used)); };
  if (num_used() > slot.strings.num_bytes()) {
    // They did not fit: once more, with room for them.
    reserve_strings(slot, aligned(num_used() + num_used() / 4));
    encode(slot, slot.stream.get());
    copy_out(slot);
    slot.done.wait();
  } else if (num_used() > slot.expected_bytes) {
    slot.host_strings.reserve(slot.strings.num_bytes());  // none if there was no memory for it; else as large already
    copy_strings(slot, slot.expected_bytes, num_used());
    slot.done.record(slot.stream.get());
    slot.done.wait();
  }
  const std::size_t used = num_used();
  slot.expected_bytes = std::min(slot.strings.num_bytes(), aligned(used + used / 4));
  const auto* offsets = slot.host_results.as<std::int64_t>(layout_.offsets);
  const auto* lengths = slot.host_results.as<std::int32_t>(layout_.lengths);
  std::vector<std::string> strings(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    const bool is_inside =
        offsets[i] >= 0 && lengths[i] > 0 && static_cast<std::size_t>(offsets[i] + lengths[i]) <= used;
    if (is_inside)
      strings[i].assign(slot.host_strings.as<char>(static_cast<std::size_t>(offsets[i])),
                        static_cast<std::size_t>(lengths[i]));
  }
  return strings;
}

std::vector<Detections> TensorRTModel::wait(Batch& batch) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const ActiveDevice active(device_);
  for (const auto& slot : slots_) {
    if (slot->batch.get() == &batch) finish(*slot);
  }
  if (batch.failure) throw *batch.failure;
  return std::move(batch.found);
}

void TensorRTModel::forget(Batch& batch) const noexcept {
  try {
    wait(batch);
  } catch (...) {
    // Nobody asks for the result.
  }
}

Provenance machine_of(int device_index, const std::optional<PluginLibrary>& plugins, const std::string& tensorrt) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device_index), "cudaGetDeviceProperties");
  Provenance machine;
  if (plugins) machine.plugins_sha256 = plugins->sha256;
  machine.tensorrt = tensorrt;
  machine.gpu = properties.name;
  machine.compute_capability = joined(properties.major, ".", properties.minor);
  return machine;
}

void check_device(int index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    failed("CUDA: expected a GPU, found ", status == cudaSuccess ? "none" : cudaGetErrorString(status),
           "; run the ONNX on the CPU, or install a driver");
  }
  if (index < 0 || index >= count) {
    invalid("device_index: expected a whole number from 0 to ", count - 1, ", found ", index);
  }
}

}  // namespace

std::shared_ptr<const Model> open_tensorrt(const std::string& path, const Options& options) {
  check_device(options.device_index);
  const ActiveDevice active(options.device_index);
  TensorRTLibrary& library = TensorRTLibrary::instance();
  std::optional<PluginLibrary> plugins = load_plugins(options.plugins);
  CheckedEngine engine = checked_engine(path, machine_of(options.device_index, plugins, library.name()));
  auto metadata = std::make_shared<Metadata>(std::move(engine.metadata));
  metadata->info.backend = library.name();
  auto model = std::make_shared<TensorRTModel>(metadata, options, path, engine.data, std::move(plugins));
  metadata->info.largest_batch = model->largest_batch();
  return model;
}

}  // namespace maskrcnn
