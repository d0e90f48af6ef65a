// How long images take, from pixels to detections with run lengths, in batches of 1 and of N; on request, whether
// memory grows over many calls, and whether detectors side by side find what one alone finds.
//
//   benchmark MODEL IMAGE... [--batch 8] [--runs 20] [--threads T] [--calls 10000] [--detectors 2] [--json FILE]
#include <maskrcnn/detector.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "endurance.h"
#include "images.h"
#include "numbers.h"
#include "written.h"

namespace {

constexpr int kNumWarmUps = 4;  // an engine's third batch of a size becomes a CUDA graph
constexpr int kNumRounds = 5;   // of every detector over all images
constexpr const char* kUsage =
    "expected MODEL IMAGE... [--batch N] [--runs N] [--threads N] [--calls N] [--detectors N] [--json FILE]";

struct Arguments {
  std::string model, json;
  std::vector<std::string> images;
  int batch = 8, runs = 20, threads = 0;
  int calls = 0, detectors = 0;  // 0: not asked for
};

struct Latency {
  int batch = 0;
  std::size_t num_masks = 0;
  std::vector<double> detect_ms, masks_ms;  // of each run: to detections, and from there to run lengths
};

int fail(const std::string& message) {
  std::fprintf(stderr, "benchmark: error: %s\n", message.c_str());
  return 2;
}

// Returns why not, or nothing.
std::string parse(int count, char** texts, Arguments& arguments) {
  for (int i = 1; i < count; ++i) {
    const std::string text = texts[i];
    int* value = text == "--batch"       ? &arguments.batch
                 : text == "--runs"      ? &arguments.runs
                 : text == "--threads"   ? &arguments.threads
                 : text == "--calls"     ? &arguments.calls
                 : text == "--detectors" ? &arguments.detectors
                                         : nullptr;
    if (value != nullptr && i + 1 < count) {
      const std::string given = texts[++i];
      if (!read_number(given, *value)) return text + ": expected a whole number, found \"" + given + "\"";
      if (*value < 1) return text + ": expected at least 1, found " + given;
    } else if (text == "--json" && i + 1 < count) {
      arguments.json = texts[++i];
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

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The first `batch` images, in turn where there are fewer. Returns why not, or nothing.
std::string measure(const maskrcnn::Detector& detector, const std::vector<maskrcnn::Image>& given, int runs,
                    Latency& latency) {
  std::vector<maskrcnn::Image> images;
  for (std::size_t i = 0; i < static_cast<std::size_t>(latency.batch); ++i) images.push_back(given[i % given.size()]);
  for (int run = -kNumWarmUps; run < runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    const auto found = detector.detect(images.data(), images.size());
    if (!found) return found.error().message;
    const double detected = milliseconds_since(start);
    latency.num_masks = 0;
    for (const maskrcnn::Detections& detections : found.value()) {
      for (std::size_t i = 0; detections.has_masks() && i < detections.size(); ++i, ++latency.num_masks) {
        const auto rle = detections.rle(i);
        if (!rle) return rle.error().message;
      }
    }
    if (run < 0) continue;
    latency.detect_ms.push_back(detected);
    latency.masks_ms.push_back(milliseconds_since(start) - detected);
  }
  return "";
}

void print(const Latency& latency) {
  const double detect_ms = median(latency.detect_ms);
  std::printf("batch %3d: detect %9.2f ms (%8.2f an image), run lengths of %zu masks %7.2f ms\n", latency.batch,
              detect_ms, detect_ms / latency.batch, latency.num_masks, median(latency.masks_ms));
}

void print(const Endurance& endurance) {
  for (const auto& [calls, figures] : endurance.figures) {
    std::printf("calls %6d: %8.1f MiB resident, %lld threads, %lld files", calls,
                static_cast<double>(figures.resident_bytes) / (1 << 20), static_cast<long long>(figures.threads),
                static_cast<long long>(figures.file_descriptors));
    if (figures.device_bytes >= 0) {
      std::printf(", %9.1f MiB of the device", static_cast<double>(figures.device_bytes) / (1 << 20));
    }
    std::printf("\n");
  }
  std::printf("calls %6d: %9.2f ms each, %d results unlike the first\n", endurance.calls,
              endurance.milliseconds / endurance.calls, endurance.unlike);
}

std::string list_of(const std::vector<double>& values) {
  std::ostringstream out;
  for (std::size_t i = 0; i < values.size(); ++i) out << (i == 0 ? "[" : ", ") << values[i];
  return out.str() + "]";
}

std::string json_of(const std::vector<Latency>& latencies) {
  std::ostringstream out;
  for (const Latency& latency : latencies) {
    out << (out.tellp() == 0 ? "[" : ", ") << "{\"batch\": " << latency.batch
        << ", \"num_masks\": " << latency.num_masks << ", \"detect_ms\": " << list_of(latency.detect_ms)
        << ", \"masks_ms\": " << list_of(latency.masks_ms) << "}";
  }
  return out.str() + "]";
}

std::string json_of(const Endurance& endurance) {
  std::ostringstream out;
  out << "{\"calls\": " << endurance.calls << ", \"milliseconds\": " << endurance.milliseconds
      << ", \"unlike\": " << endurance.unlike << ", \"figures\": [";
  for (std::size_t i = 0; i < endurance.figures.size(); ++i) {
    const auto& [calls, figures] = endurance.figures[i];
    out << (i == 0 ? "" : ", ") << "{\"calls\": " << calls << ", \"resident_bytes\": " << figures.resident_bytes
        << ", \"threads\": " << figures.threads << ", \"file_descriptors\": " << figures.file_descriptors
        << ", \"device_bytes\": ";
    figures.device_bytes >= 0 ? out << figures.device_bytes << "}" : out << "null}";
  }
  out << "]}";
  return out.str();
}

// Everything that was measured. Returns why not, or nothing.
std::string run(const Arguments& arguments, const maskrcnn::Options& options,
                const std::vector<maskrcnn::Image>& images, std::string& json) {
  std::vector<Latency> latencies;
  {
    const auto opened = maskrcnn::Detector::open(arguments.model, options);
    if (!opened) return opened.error().message;
    std::printf("%s, %s, %zu images, the first %dx%d px; medians of %d\n", arguments.model.c_str(),
                opened.value().info().backend.c_str(), images.size(), images[0].height, images[0].width,
                arguments.runs);
    json = "{\"backend\": \"" + opened.value().info().backend + "\"";
    for (const int batch : {1, arguments.batch}) {
      if (!latencies.empty() && batch == 1) break;
      latencies.emplace_back().batch = batch;
      const std::string problem = measure(opened.value(), images, arguments.runs, latencies.back());
      if (!problem.empty()) return problem;
      print(latencies.back());
    }
    json += ", \"latency\": " + json_of(latencies);
    if (arguments.calls > 0) {
      const Endurance endurance = endure(opened.value(), images, arguments.calls);
      if (!endurance.problem.empty()) return endurance.problem;
      print(endurance);
      json += ", \"endurance\": " + json_of(endurance);
    }
  }
  if (arguments.detectors > 0) {
    const Company company =
        in_company(arguments.model, options, images, arguments.batch, arguments.detectors, kNumRounds);
    if (!company.problem.empty()) return company.problem;
    std::printf("%d detectors at once: %d results, %d unlike those of one alone\n", arguments.detectors,
                company.results, company.unlike);
    json += ", \"company\": {\"detectors\": " + std::to_string(arguments.detectors) +
            ", \"results\": " + std::to_string(company.results) + ", \"unlike\": " + std::to_string(company.unlike) +
            "}";
  }
  json += "}\n";
  return "";
}

}  // namespace

int main(int count, char** texts) {
  Arguments arguments;
  const std::string unusable = parse(count, texts, arguments);
  if (!unusable.empty()) return fail(unusable);
  // Before anything is measured.
  if (!arguments.json.empty() && !can_write(arguments.json)) return fail(not_written(arguments.json));
  maskrcnn::Options options;
  options.threads = arguments.threads;
  std::vector<Pixels> pixels;
  std::vector<maskrcnn::Image> images;
  const std::string unreadable = read_images(arguments.images, pixels, images);
  if (!unreadable.empty()) return fail(unreadable);
  std::string json;
  const std::string problem = run(arguments, options, images, json);
  if (!problem.empty()) return fail(problem);
  if (arguments.json.empty()) return 0;
  std::ofstream out(arguments.json);
  out << json;
  out.close();
  return out ? 0 : fail(not_written(arguments.json));
}
