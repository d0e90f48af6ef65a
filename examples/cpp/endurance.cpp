#include "endurance.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <thread>

namespace {

constexpr int kNumFigures = 10;

// An image's detections as plain values.
struct Found {
  std::vector<maskrcnn::Box> boxes;
  std::vector<float> scores;
  std::vector<int> labels;
  std::vector<std::string> counts;
};

bool is_same(const Found& a, const Found& b) {
  const auto same_box = [](const maskrcnn::Box& x, const maskrcnn::Box& y) {
    return std::memcmp(&x, &y, sizeof x) == 0;
  };
  return a.scores == b.scores && a.labels == b.labels && a.counts == b.counts &&
         std::equal(a.boxes.begin(), a.boxes.end(), b.boxes.begin(), b.boxes.end(), same_box);
}

// Returns why not, or nothing.
std::string read(const maskrcnn::Detections& detections, Found& found) {
  found = {detections.boxes, detections.scores, detections.labels, {}};
  for (std::size_t i = 0; detections.has_masks() && i < detections.size(); ++i) {
    auto rle = detections.rle(i);
    if (!rle) return rle.error().message;
    found.counts.push_back(std::move(rle.value().counts));
  }
  return "";
}

std::string detect(const maskrcnn::Detector& detector, const std::vector<maskrcnn::Image>& images,
                   std::vector<Found>& found) {
  const auto detected = detector.detect(images.data(), images.size());
  if (!detected) return detected.error().message;
  found.resize(images.size());
  for (std::size_t i = 0; i < images.size(); ++i) {
    const std::string problem = read(detected.value()[i], found[i]);
    if (!problem.empty()) return problem;
  }
  return "";
}

// As many images as asked for, from a place on, in turn.
std::vector<maskrcnn::Image> batch_at(const std::vector<maskrcnn::Image>& images, std::size_t place, int size) {
  std::vector<maskrcnn::Image> batch;
  for (int i = 0; i < size; ++i) batch.push_back(images[(place + static_cast<std::size_t>(i)) % images.size()]);
  return batch;
}

using Batches = std::vector<std::vector<maskrcnn::Image>>;
using Results = std::vector<std::vector<Found>>;

std::string detect_all(const maskrcnn::Detector& detector, const Batches& batches, Results& results) {
  results.resize(batches.size());
  for (std::size_t i = 0; i < batches.size(); ++i) {
    const std::string problem = detect(detector, batches[i], results[i]);
    if (!problem.empty()) return problem;
  }
  return "";
}

int num_unlike(const std::vector<Found>& found, const std::vector<Found>& expected) {
  int count = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) count += is_same(found[i], expected[i]) ? 0 : 1;
  return count;
}

// A detector's rounds over all batches, the first of which is another one for each.
class Worker {
 public:
  Worker(const Batches& batches, const Results& expected) : batches_(batches), expected_(expected) {}

  void run(const maskrcnn::Detector& detector, std::size_t first, int rounds) {
    std::vector<Found> found;
    for (std::size_t turn = 0; turn < batches_.size() * static_cast<std::size_t>(rounds); ++turn) {
      const std::size_t index = (first + turn) % batches_.size();
      const std::string problem = detect(detector, batches_[index], found);
      if (!problem.empty()) return fail(problem);
      add(static_cast<int>(found.size()), num_unlike(found, expected_[index]));
    }
  }

  const Company& company() const { return company_; }

 private:
  void add(int results, int unlike) {
    const std::lock_guard<std::mutex> lock(mutex_);
    company_.results += results;
    company_.unlike += unlike;
  }
  void fail(const std::string& problem) {
    const std::lock_guard<std::mutex> lock(mutex_);
    company_.problem = problem;
  }

  const Batches& batches_;
  const Results& expected_;
  std::mutex mutex_;
  Company company_;
};

}  // namespace

Endurance endure(const maskrcnn::Detector& detector, const std::vector<maskrcnn::Image>& images, int calls) {
  Endurance endurance;
  std::vector<std::vector<Found>> first(images.size());
  std::vector<Found> found;
  const int between = std::max(1, calls / kNumFigures);
  const auto start = std::chrono::steady_clock::now();
  for (int call = 0; call < calls; ++call) {
    const std::size_t index = static_cast<std::size_t>(call) % images.size();
    endurance.problem = detect(detector, {images[index]}, found);
    if (!endurance.problem.empty()) return endurance;
    if (first[index].empty()) first[index] = found;
    endurance.unlike += num_unlike(found, first[index]);
    endurance.calls = call + 1;
    if (endurance.calls % between == 0) endurance.figures.emplace_back(endurance.calls, figures_now());
  }
  const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - start;
  endurance.milliseconds = taken.count();
  return endurance;
}

Company in_company(const std::string& model, const maskrcnn::Options& options,
                   const std::vector<maskrcnn::Image>& images, int batch, int detectors, int rounds) {
  std::vector<maskrcnn::Detector> opened;
  Batches batches;
  for (std::size_t place = 0; place < images.size(); ++place) {
    batches.push_back(batch_at(images, place, 1));
    batches.push_back(batch_at(images, place, batch));
  }
  Results expected;
  for (int i = 0; i < detectors; ++i) {
    auto one = maskrcnn::Detector::open(model, options);
    if (!one) return {0, 0, one.error().message};
    opened.push_back(std::move(one).value());
    if (i > 0) continue;
    const std::string problem = detect_all(opened[0], batches, expected);  // while there is no other
    if (!problem.empty()) return {0, 0, problem};
  }
  Worker worker(batches, expected);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < opened.size(); ++i) {
    threads.emplace_back([&worker, &opened, i, rounds] { worker.run(opened[i], i, rounds); });
  }
  for (std::thread& thread : threads) thread.join();
  return worker.company();
}
