// Detect objects with an exported model: images in; boxes, scores, labels, key points and masks out.
//
//   auto opened = maskrcnn::Detector::open("model.onnx");
//   if (!opened) return fail(opened.error().message);
//   const maskrcnn::Image image{pixels, height, width};
//   auto found = opened.value().detect(&image, 1);
//
// Nothing throws: what can fail returns a Result, whose error says what was expected, what was found and what to do.
//
// Threads: a Detector may be used by any number of threads at once, as may what it returned, which outlives it. Moving
// or destroying an object while another thread uses it is the caller's to prevent. A forked process refuses what was
// made before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "maskrcnn/api.h"

namespace maskrcnn {

enum class ErrorCode {
  kNotFound = 1,  // a file that is not there
  kInvalid = 2,   // a damaged, foreign or stale file, an argument out of range
  kFailed = 3,    // the backend, the device or memory
};

struct Error {
  ErrorCode code = ErrorCode::kFailed;
  std::string message;  // one line: what was expected, what was found, what to do
};

// A value, or the reason why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : content_(std::in_place_index<0>, std::move(value)) {}      // NOLINT: implicit, as `return value;`
  Result(Error error) : content_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  bool ok() const noexcept { return content_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }

  // Of a result that is ok().
  T& value() & noexcept { return *std::get_if<0>(&content_); }
  const T& value() const& noexcept { return *std::get_if<0>(&content_); }
  T&& value() && noexcept { return std::move(*std::get_if<0>(&content_)); }

  // Of a result that is not.
  const Error& error() const noexcept { return *std::get_if<1>(&content_); }

 private:
  std::variant<T, Error> content_;
};

enum class Memory {
  kHost,
  kDevice,  // of the GPU that the engine runs on: TensorRT alone
};

// An image as decoded; the caller's memory, read until the call returns, or where it is said, until the wait does.
struct Image {
  const std::uint8_t* pixels = nullptr;  // rows of interleaved channels: blue, green, red
  int height = 0;                        // px
  int width = 0;                         // px
  int channels = 3;                      // 1 for a model that reads grey images
  std::int64_t row_pitch = 0;            // bytes from a row to the next; 0: width * channels
  std::uint64_t num_bytes = 0;           // of the buffer, which is then checked to hold the image; 0: not known
  Memory memory = Memory::kHost;
};

struct Box {
  float x1, y1, x2, y2;  // px of the image
};

struct Keypoint {
  float x, y;  // px of the image
  float score;
};

// COCO's compressed run lengths: {"size": [height, width], "counts": counts}.
struct RunLengths {
  int height = 0;  // px, of the image
  int width = 0;
  std::string counts;
};

// A mask without the empty part of the image around it.
struct Mask {
  int top = 0;  // where it lies in the image, px
  int left = 0;
  int height = 0;
  int width = 0;
  std::vector<std::uint8_t> pixels;  // (height, width), 0 or 1
};

struct ModelInfo {
  std::vector<std::string> classes;           // a label is an index into them
  std::vector<std::string> keypoints;         // names of each detection's key points; empty without any
  std::vector<std::pair<int, int>> skeleton;  // pairs of key points between which a line is drawn
  std::string masks;                          // "crop", "full", "grid" or "none"
  float mask_threshold = 0;                   // probability from which a pixel belongs to the object
  float score_threshold = 0;                  // what scores less is not in the output
  int max_detections = 0;                     // of an image
  int channels = 3;                           // of the network's input
  int height = 0;                             // of the network's input, px; 0: any
  int width = 0;
  int size_divisor = 1;    // of any size: the padded edges are multiples of it
  std::string color_type;  // how a file is decoded: "color", "grayscale", "unchanged", ...
  std::string decoder;     // "cv2" or "pillow"
  std::string config;      // the name of the model's config
  std::string backend;     // what runs it, with its version: "OpenVINO 2026.4.1"
  int largest_batch = 0;   // images that run at once; more are split. 0: any number
};

struct Internals;  // where the masks of an image come from

// What was found in one image, best first. A copy shares the masks.
class MASKRCNN_API Detections {
 public:
  int image_height = 0;  // px
  int image_width = 0;
  std::vector<Box> boxes;
  std::vector<float> scores;
  std::vector<int> labels;
  std::vector<Keypoint> keypoints;  // of the first detection, of the second, ...; empty for a model without

  std::size_t size() const noexcept { return boxes.size(); }

  // The class of a detection; empty out of range.
  const std::string& name(std::size_t index) const noexcept;

  // Whether the model has masks. They are made when they are asked for, and kept nowhere.
  bool has_masks() const noexcept;
  Result<RunLengths> rle(std::size_t index) const noexcept;
  Result<Mask> mask(std::size_t index) const noexcept;

  // Writes image_height rows of image_width bytes, 0 or 1, `row_pitch` bytes apart (0: image_width).
  Result<bool> full_mask(std::size_t index, std::uint8_t* pixels, std::int64_t row_pitch = 0) const noexcept;

 private:
  friend struct Internals;
  std::shared_ptr<const Internals> internals_;
};

enum class Precision {
  kFp32,
  kBf16,  // of floats, on a CPU that has it: faster, other results
};

struct Options {
  int batch_size = 0;  // most images that run at once, 1 to 1024; 0: a call's images in one batch

  // "openvino", "onnxruntime" or "tensorrt"; empty: the first of those in the library that reads the file.
  std::string backend;

  // What another backend than the one that runs has is refused. OpenVINO; of onnxruntime `threads` alone. What a file
  // has in INT8 runs so in either precision.
  int threads = 0;  // in all; 0: one per physical core
  Precision precision = Precision::kFp32;
  int streams = 1;    // batches that run at once; the threads are divided among them
  std::string cache;  // a folder for compiled models; empty: none
  int sizes = 4;      // of a model of any size, how many frequent sizes get a network of their own, up to 256

  // TensorRT.
  int device_index = 0;
  std::string plugins;      // the plugin library; empty: $MASKRCNN_PLUGINS, or the one beside this library
  bool cuda_graphs = true;  // launch the network as a CUDA graph from the third batch of one size on
};

struct RunOptions {
  float min_score = 0;  // what scores less is left out

  // A cudaStream_t: what it was given before is waited for on the device, so that it may have written the images.
  // TensorRT alone.
  void* stream = nullptr;
};

struct PendingState;

// Batches under way. Destroying it waits for them.
class MASKRCNN_API Pending {
 public:
  explicit Pending(std::unique_ptr<PendingState> state) noexcept;  // for Detector
  Pending(Pending&&) noexcept;
  Pending& operator=(Pending&&) noexcept;
  ~Pending();

  // Waits; one Detections per image, in their order. Once: a second call is an error.
  Result<std::vector<Detections>> wait() noexcept;

 private:
  std::unique_ptr<PendingState> state_;
};

class OpenModel;

// An exported model.
class MASKRCNN_API Detector {
 public:
  // Opens an ONNX file (OpenVINO, ONNX Runtime), or an engine with its sidecar (TensorRT). Takes seconds.
  static Result<Detector> open(const std::string& path, const Options& options = {}) noexcept;

  Detector(Detector&&) noexcept;
  Detector& operator=(Detector&&) noexcept;
  ~Detector();

  const ModelInfo& info() const noexcept;

  // Detects objects in images of any number and sizes; none give an empty list.
  Result<std::vector<Detections>> detect(const Image* images, std::size_t num_images,
                                         const RunOptions& options = {}) const noexcept;

  // The same without waiting for the last batches: of a call with more than run at once, the first ones have ended when
  // it returns. Images in host memory have been read then; those on the device must stay as they are until the wait
  // returns. Batches of one Detector start in their order.
  Result<Pending> submit(const Image* images, std::size_t num_images, const RunOptions& options = {}) const noexcept;

 private:
  explicit Detector(std::shared_ptr<const OpenModel> model) noexcept;
  std::shared_ptr<const OpenModel> model_;
};

// "0.1.0", of the library that is loaded.
MASKRCNN_API const char* version() noexcept;

// What this library was built with, of "openvino", "tensorrt" and "onnxruntime", separated by spaces.
MASKRCNN_API const char* backends() noexcept;

}  // namespace maskrcnn
