// How long an image takes: batches of 1 and of N, from pixels to detections, and the same with masks encoded.
//
//   benchmark MODEL IMAGE [--batch 8] [--runs 20] [--threads T]
#include <maskrcnn/detector.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "images.h"

namespace {

struct Arguments {
  std::string model, image;
  int batch = 8, runs = 20, threads = 0;
};

int fail(const std::string& message) {
  std::fprintf(stderr, "benchmark: error: %s\n", message.c_str());
  return 2;
}

bool parse(int count, char** texts, Arguments& arguments) {
  for (int i = 1; i < count; ++i) {
    const std::string text = texts[i];
    int* value = text == "--batch"     ? &arguments.batch
                 : text == "--runs"    ? &arguments.runs
                 : text == "--threads" ? &arguments.threads
                                       : nullptr;
    if (value != nullptr && i + 1 < count) {
      *value = std::atoi(texts[++i]);
    } else if (value != nullptr || text.rfind("--", 0) == 0) {
      return false;
    } else {
      (arguments.model.empty() ? arguments.model : arguments.image) = text;
    }
  }
  return !arguments.image.empty() && arguments.batch > 0 && arguments.runs > 0;
}

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Prints a row; returns why not, or nothing.
std::string measure(const maskrcnn::Detector& detector, const maskrcnn::Image& image, int batch, int runs) {
  const std::vector<maskrcnn::Image> images(static_cast<std::size_t>(batch), image);
  std::vector<double> detect_ms, masks_ms;
  std::size_t num_detections = 0;
  for (int run = -2; run < runs; ++run) {  // two to warm up
    const auto start = std::chrono::steady_clock::now();
    const auto found = detector.detect(images.data(), images.size());
    if (!found) return found.error().message;
    const double detected = milliseconds_since(start);
    num_detections = 0;
    for (const maskrcnn::Detections& detections : found.value()) {
      num_detections += detections.size();
      for (std::size_t i = 0; detections.has_masks() && i < detections.size(); ++i) {
        const auto rle = detections.rle(i);
        if (!rle) return rle.error().message;
      }
    }
    if (run < 0) continue;
    detect_ms.push_back(detected);
    masks_ms.push_back(milliseconds_since(start) - detected);
  }
  std::printf("batch %3d: detect %9.2f ms (%8.2f an image), run lengths of %zu masks %7.2f ms\n", batch,
              median(detect_ms), median(detect_ms) / batch, num_detections, median(masks_ms));
  return "";
}

}  // namespace

int main(int count, char** texts) {
  Arguments arguments;
  if (!parse(count, texts, arguments)) return fail("expected MODEL IMAGE [--batch N] [--runs N] [--threads N]");
  maskrcnn::Options options;
  options.threads = arguments.threads;
  const auto opened = maskrcnn::Detector::open(arguments.model, options);
  if (!opened) return fail(opened.error().message);
  Pixels pixels;
  std::string problem;
  if (!read_image(arguments.image, pixels, problem)) return fail(arguments.image + ": " + problem);
  maskrcnn::Image image;
  image.pixels = pixels.bgr.data();
  image.height = pixels.height;
  image.width = pixels.width;
  std::printf("%s, %s, %dx%d px; medians of %d\n", arguments.model.c_str(), opened.value().info().backend.c_str(),
              image.height, image.width, arguments.runs);
  problem = measure(opened.value(), image, 1, arguments.runs);
  if (problem.empty() && arguments.batch > 1) problem = measure(opened.value(), image, arguments.batch, arguments.runs);
  return problem.empty() ? 0 : fail(problem);
}
