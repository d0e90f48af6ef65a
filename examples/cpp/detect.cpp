// Detect objects in image files; print them, and write COCO's results.
//
//   detect MODEL IMAGE... [--out results.json] [--min-score 0.3] [--batch 4]
#include <maskrcnn/detector.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <limits>
#include <string>
#include <vector>

#include "images.h"
#include "numbers.h"
#include "written.h"

namespace {

struct Arguments {
  std::string model;
  std::vector<std::string> images;
  std::string out;
  float min_score = 0.3f;
  int batch = 4;
};

int fail(const std::string& message) {
  std::fprintf(stderr, "detect: error: %s\n", message.c_str());
  return 2;
}

const char* const kUsage = "expected MODEL IMAGE... [--out FILE] [--min-score S] [--batch N]";

// Returns why not, or nothing.
std::string parse(int count, char** texts, Arguments& arguments) {
  for (int i = 1; i < count; ++i) {
    const std::string text = texts[i];
    const bool has_value = i + 1 < count;
    if (text == "--out" && has_value) {
      arguments.out = texts[++i];
    } else if (text == "--min-score" && has_value) {
      const std::string given = texts[++i];
      // Not a NaN either.
      if (!read_number(given, arguments.min_score) || !(arguments.min_score >= 0 && arguments.min_score <= 1)) {
        return text + ": expected a number from 0 to 1, found \"" + given + "\"";
      }
    } else if (text == "--batch" && has_value) {
      const std::string given = texts[++i];
      if (!read_number(given, arguments.batch) || arguments.batch < 1) {
        return text + ": expected a whole number of at least 1, found \"" + given + "\"";
      }
    } else if (text.rfind("--", 0) == 0) {
      return kUsage;
    } else if (arguments.model.empty()) {
      arguments.model = text;
    } else {
      arguments.images.push_back(text);
    }
  }
  return arguments.images.empty() ? kUsage : "";
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
      out += escaped;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

// An image's detections, as COCO's results have them: ids start at 1. Returns why not, or nothing.
std::string write_results(const maskrcnn::Detections& found, int image_id, const std::string& file_name,
                          std::ostream& out, bool& is_first) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    const maskrcnn::Box& box = found.boxes[i];
    out << (is_first ? "\n" : ",\n") << "{\"image_id\": " << image_id << ", \"category_id\": " << found.labels[i] + 1
        << ", \"bbox\": [" << box.x1 << ", " << box.y1 << ", " << box.x2 - box.x1 << ", " << box.y2 - box.y1
        << "], \"score\": " << found.scores[i] << ", \"file_name\": " << quoted(file_name);
    is_first = false;
    if (found.has_masks()) {
      const auto rle = found.rle(i);
      if (!rle) return rle.error().message;
      out << ", \"segmentation\": {\"size\": [" << rle.value().height << ", " << rle.value().width
          << "], \"counts\": " << quoted(rle.value().counts) << "}";
    }
    out << "}";
  }
  return "";
}

void print(const maskrcnn::Detections& found, const std::string& path) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    const maskrcnn::Box& box = found.boxes[i];
    std::printf("%s  %s  %.3f  %.1f %.1f %.1f %.1f\n", path.c_str(), found.name(i).c_str(), found.scores[i], box.x1,
                box.y1, box.x2, box.y2);
  }
}

}  // namespace

int main(int count, char** texts) {
  Arguments arguments;
  const std::string unusable = parse(count, texts, arguments);
  if (!unusable.empty()) return fail(unusable);
  // Before anything is detected.
  if (!arguments.out.empty() && !can_write(arguments.out)) return fail(not_written(arguments.out));
  maskrcnn::Options options;
  options.batch_size = arguments.batch;
  auto opened = maskrcnn::Detector::open(arguments.model, options);
  if (!opened) return fail(opened.error().message);
  const maskrcnn::Detector& detector = opened.value();

  std::vector<Pixels> pixels;
  std::vector<maskrcnn::Image> images;
  const std::string unreadable = read_images(arguments.images, pixels, images);
  if (!unreadable.empty()) return fail(unreadable);

  maskrcnn::RunOptions run;
  run.min_score = arguments.min_score;
  const auto detected = detector.detect(images.data(), images.size(), run);
  if (!detected) return fail(detected.error().message);
  for (std::size_t i = 0; i < images.size(); ++i) print(detected.value()[i], arguments.images[i]);
  if (std::fflush(stdout) != 0) {
    return fail(std::string("standard output: expected to write to it, found: ") + std::strerror(errno));
  }
  if (arguments.out.empty()) return 0;

  std::ofstream out(arguments.out);
  out << std::setprecision(std::numeric_limits<float>::max_digits10) << "[";
  bool is_first = true;
  for (std::size_t i = 0; i < images.size(); ++i) {
    const std::string problem =
        write_results(detected.value()[i], static_cast<int>(i) + 1, arguments.images[i], out, is_first);
    if (!problem.empty()) return fail(problem);
  }
  out << "\n]\n";
  out.close();
  return out ? 0 : fail(not_written(arguments.out));
}
