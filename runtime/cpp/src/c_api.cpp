#include "maskrcnn/c_api.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "errors.h"
#include "maskrcnn/detector.h"

struct maskrcnn_error {
  maskrcnn::Error error;
};

struct maskrcnn_detector {
  maskrcnn::Detector detector;
};

struct maskrcnn_pending {
  maskrcnn::Pending pending;
};

struct maskrcnn_results {
  std::vector<maskrcnn::Detections> images;
};

static_assert(sizeof(int) == sizeof(int32_t), "labels are handed out as int32_t");
static_assert(sizeof(maskrcnn::Box) == 4 * sizeof(float), "boxes are handed out as (n, 4)");
static_assert(sizeof(maskrcnn::Keypoint) == 3 * sizeof(float), "key points are handed out as (n, P, 3)");

namespace {

constexpr size_t kMostImages = size_t{1} << 31;

using maskrcnn::Error;
using maskrcnn::ErrorCode;

// Made beforehand, as there is no memory for another; never freed.
maskrcnn_error no_memory_error{{ErrorCode::kFailed, "memory: expected more, found too little"}};

int no_memory(maskrcnn_error** error) noexcept {
  if (error != nullptr) *error = &no_memory_error;
  return MASKRCNN_FAILED;
}

int report(const Error& problem, maskrcnn_error** error) noexcept {
  if (error == nullptr) return static_cast<int>(problem.code);
  try {
    *error = new maskrcnn_error{problem};
    return static_cast<int>(problem.code);
  } catch (...) {
    return no_memory(error);
  }
}

// An argument that cannot be taken; `parts` are the message.
template <typename... Parts>
int refuse(maskrcnn_error** error, const Parts&... parts) noexcept {
  try {
    return report({ErrorCode::kInvalid, maskrcnn::joined(parts...)}, error);
  } catch (...) {
    return no_memory(error);
  }
}

maskrcnn::Options options_from(const maskrcnn_options* given) {
  maskrcnn::Options options;
  maskrcnn_options read{};
  if (given == nullptr) return options;
  // Of an older header, the fields that it has; of a newer one, those that are known here.
  std::memcpy(&read, given, given->struct_size < sizeof(read) ? given->struct_size : sizeof(read));
  options.batch_size = read.batch_size;
  options.threads = read.threads;
  options.precision = read.bf16 != 0 ? maskrcnn::Precision::kBf16 : maskrcnn::Precision::kFp32;
  if (read.streams != 0) options.streams = read.streams;
  if (read.sizes != 0) options.sizes = read.sizes == -1 ? 0 : read.sizes;
  options.device_index = read.device_index;
  options.cuda_graphs = read.no_cuda_graphs == 0;
  if (read.cache != nullptr) options.cache = read.cache;
  if (read.plugins != nullptr) options.plugins = read.plugins;
  if (read.backend != nullptr) options.backend = read.backend;
  return options;
}

std::vector<maskrcnn::Image> images_from(const maskrcnn_image* given, size_t num_images) {
  std::vector<maskrcnn::Image> images(num_images);
  for (size_t i = 0; i < num_images; ++i) {
    maskrcnn::Image& image = images[i];
    image.pixels = given[i].pixels;
    image.height = given[i].height;
    image.width = given[i].width;
    image.channels = given[i].channels == 0 ? 3 : given[i].channels;
    image.row_pitch = given[i].row_pitch;
    image.num_bytes = given[i].num_bytes;
    image.memory = given[i].on_device != 0 ? maskrcnn::Memory::kDevice : maskrcnn::Memory::kHost;
  }
  return images;
}

// Calls run(images) with what the caller named, or says what is missing.
template <typename Run>
int with_images(const maskrcnn_detector* detector, const maskrcnn_image* images, size_t num_images,
                maskrcnn_error** error, const Run& run) noexcept {
  if (detector == nullptr) return refuse(error, "detector: expected an open one, found NULL");
  if (images == nullptr && num_images > 0) return refuse(error, "images: expected an array, found NULL");
  if (num_images > kMostImages) {
    return refuse(error, "num_images: expected up to ", kMostImages, ", found ", num_images);
  }
  try {
    return run(images_from(images, num_images));
  } catch (...) {
    return no_memory(error);
  }
}

int hand_out(maskrcnn::Result<std::vector<maskrcnn::Detections>> found, maskrcnn_results** results,
             maskrcnn_error** error) noexcept {
  if (!found) return report(found.error(), error);
  *results = new (std::nothrow) maskrcnn_results{std::move(found).value()};
  return *results == nullptr ? no_memory(error) : MASKRCNN_OK;
}

// Says of which image there are results.
int refuse_index(const maskrcnn_results* results, size_t image, maskrcnn_error** error) noexcept {
  if (results == nullptr) return refuse(error, "results: expected some, found NULL");
  return refuse(error, "image: expected an index below ", results->images.size(), ", found ", image);
}

// Of an image, or null.
const maskrcnn::Detections* detections(const maskrcnn_results* results, size_t image) {
  return results != nullptr && image < results->images.size() ? &results->images[image] : nullptr;
}

template <typename T>
T* cleared(T* pointer) {
  if (pointer != nullptr) *pointer = nullptr;
  return pointer;
}

}  // namespace

int maskrcnn_open(const char* path, const maskrcnn_options* options, maskrcnn_detector** detector,
                  maskrcnn_error** error) {
  cleared(error);
  if (cleared(detector) == nullptr) return refuse(error, "detector: expected where to put it, found NULL");
  if (path == nullptr) return refuse(error, "path: expected a file, found NULL");
  if (options != nullptr && options->struct_size < sizeof(options->struct_size) + sizeof(options->batch_size)) {
    return refuse(error, "options.struct_size: expected sizeof(maskrcnn_options), ", sizeof(*options), ", found ",
                  options->struct_size, "; set it");
  }
  try {
    auto opened = maskrcnn::Detector::open(path, options_from(options));
    if (!opened) return report(opened.error(), error);
    *detector = new maskrcnn_detector{std::move(opened).value()};
    return MASKRCNN_OK;
  } catch (...) {
    return no_memory(error);
  }
}

void maskrcnn_detector_free(maskrcnn_detector* detector) { delete detector; }

int maskrcnn_detect(const maskrcnn_detector* detector, const maskrcnn_image* images, size_t num_images, float min_score,
                    void* stream, maskrcnn_results** results, maskrcnn_error** error) {
  cleared(error);
  if (cleared(results) == nullptr) return refuse(error, "results: expected where to put them, found NULL");
  return with_images(detector, images, num_images, error, [&](const std::vector<maskrcnn::Image>& given) {
    return hand_out(detector->detector.detect(given.data(), given.size(), {min_score, stream}), results, error);
  });
}

int maskrcnn_submit(const maskrcnn_detector* detector, const maskrcnn_image* images, size_t num_images, float min_score,
                    void* stream, maskrcnn_pending** pending, maskrcnn_error** error) {
  cleared(error);
  if (cleared(pending) == nullptr) return refuse(error, "pending: expected where to put it, found NULL");
  return with_images(detector, images, num_images, error, [&](const std::vector<maskrcnn::Image>& given) {
    auto submitted = detector->detector.submit(given.data(), given.size(), {min_score, stream});
    if (!submitted) return report(submitted.error(), error);
    *pending = new maskrcnn_pending{std::move(submitted).value()};
    return static_cast<int>(MASKRCNN_OK);
  });
}

int maskrcnn_wait(maskrcnn_pending* pending, maskrcnn_results** results, maskrcnn_error** error) {
  cleared(error);
  if (cleared(results) == nullptr) return refuse(error, "results: expected where to put them, found NULL");
  if (pending == nullptr) return refuse(error, "pending: expected a batch under way, found NULL");
  return hand_out(pending->pending.wait(), results, error);
}

void maskrcnn_pending_free(maskrcnn_pending* pending) { delete pending; }

size_t maskrcnn_num_classes(const maskrcnn_detector* detector) {
  return detector == nullptr ? 0 : detector->detector.info().classes.size();
}

const char* maskrcnn_class_name(const maskrcnn_detector* detector, size_t label) {
  return label < maskrcnn_num_classes(detector) ? detector->detector.info().classes[label].c_str() : nullptr;
}

size_t maskrcnn_num_keypoints(const maskrcnn_detector* detector) {
  return detector == nullptr ? 0 : detector->detector.info().keypoints.size();
}

const char* maskrcnn_keypoint_name(const maskrcnn_detector* detector, size_t index) {
  return index < maskrcnn_num_keypoints(detector) ? detector->detector.info().keypoints[index].c_str() : nullptr;
}

const char* maskrcnn_mask_mode(const maskrcnn_detector* detector) {
  return detector == nullptr ? nullptr : detector->detector.info().masks.c_str();
}

const char* maskrcnn_backend(const maskrcnn_detector* detector) {
  return detector == nullptr ? nullptr : detector->detector.info().backend.c_str();
}

int maskrcnn_channels(const maskrcnn_detector* detector) {
  return detector == nullptr ? 0 : detector->detector.info().channels;
}

size_t maskrcnn_num_images(const maskrcnn_results* results) { return results == nullptr ? 0 : results->images.size(); }

size_t maskrcnn_num_detections(const maskrcnn_results* results, size_t image) {
  const auto* found = detections(results, image);
  return found == nullptr ? 0 : found->size();
}

const float* maskrcnn_boxes(const maskrcnn_results* results, size_t image) {
  const auto* found = detections(results, image);
  return found == nullptr || found->boxes.empty() ? nullptr : &found->boxes.data()->x1;
}

const float* maskrcnn_scores(const maskrcnn_results* results, size_t image) {
  const auto* found = detections(results, image);
  return found == nullptr || found->scores.empty() ? nullptr : found->scores.data();
}

const int32_t* maskrcnn_labels(const maskrcnn_results* results, size_t image) {
  const auto* found = detections(results, image);
  return found == nullptr || found->labels.empty() ? nullptr : found->labels.data();
}

const float* maskrcnn_keypoints(const maskrcnn_results* results, size_t image) {
  const auto* found = detections(results, image);
  return found == nullptr || found->keypoints.empty() ? nullptr : &found->keypoints.data()->x;
}

int maskrcnn_rle(const maskrcnn_results* results, size_t image, size_t detection, char** counts,
                 maskrcnn_error** error) {
  cleared(error);
  if (cleared(counts) == nullptr) return refuse(error, "counts: expected where to put them, found NULL");
  const auto* found = detections(results, image);
  if (found == nullptr) return refuse_index(results, image, error);
  const auto encoded = found->rle(detection);
  if (!encoded) return report(encoded.error(), error);
  *counts = strdup(encoded.value().counts.c_str());
  return *counts == nullptr ? no_memory(error) : MASKRCNN_OK;
}

int maskrcnn_mask(const maskrcnn_results* results, size_t image, size_t detection, uint8_t* pixels, int64_t row_pitch,
                  maskrcnn_error** error) {
  cleared(error);
  const auto* found = detections(results, image);
  if (found == nullptr) return refuse_index(results, image, error);
  const auto written = found->full_mask(detection, pixels, row_pitch);
  return written ? static_cast<int>(MASKRCNN_OK) : report(written.error(), error);
}

void maskrcnn_results_free(maskrcnn_results* results) { delete results; }
void maskrcnn_string_free(char* text) { std::free(text); }

int maskrcnn_error_code(const maskrcnn_error* error) {
  return error == nullptr ? static_cast<int>(MASKRCNN_OK) : static_cast<int>(error->error.code);
}

const char* maskrcnn_error_message(const maskrcnn_error* error) {
  return error == nullptr ? "" : error->error.message.c_str();
}

void maskrcnn_error_free(maskrcnn_error* error) {
  if (error != &no_memory_error) delete error;
}

const char* maskrcnn_version(void) { return maskrcnn::version(); }
const char* maskrcnn_backends(void) { return maskrcnn::backends(); }
