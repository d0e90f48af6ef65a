// Whether memory grows: soak MODEL LOOPS [THREADS]. Each thread has a detector; images are of three sizes, every tenth
// call is one that is refused. Prints the resident memory after a tenth of the loops, and at the end.
#include <maskrcnn/detector.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

namespace {

std::atomic<bool> has_failed{false};

// Of this process, KiB.
long resident() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  long size = 0, pages = 0;
  if (file == nullptr) return 0;
  if (std::fscanf(file, "%ld %ld", &size, &pages) != 2) pages = 0;
  std::fclose(file);
  return pages * 4;
}

void check(bool is_right, const std::string& what) {
  if (is_right) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  has_failed = true;
}

void once(const maskrcnn::Detector& detector, int loop) {
  const int height = 60 + 20 * (loop % 3), width = 90 - 10 * (loop % 3);
  const std::vector<std::uint8_t> pixels(static_cast<std::size_t>(height) * width * 3, 180);
  maskrcnn::Image image;
  image.pixels = pixels.data();
  image.height = height;
  image.width = width;
  const std::vector<maskrcnn::Image> images(static_cast<std::size_t>(1 + loop % 2), image);
  if (loop % 10 == 9) {
    image.pixels = nullptr;
    check(!detector.detect(&image, 1), "expected a null pointer to be refused");
    auto dropped = detector.submit(images.data(), images.size());
    check(dropped.ok(), "expected a batch to be under way");
    return;
  }
  const auto found = detector.detect(images.data(), images.size());
  if (!found) return check(false, found.error().message);
  for (const maskrcnn::Detections& detections : found.value()) {
    check(detections.size() > 0, "expected detections, found none");
    for (std::size_t i = 0; detections.has_masks() && i < detections.size(); ++i) {
      check(detections.rle(i).ok() && detections.mask(i).ok(), "expected a mask");
    }
  }
}

void run(const std::string& model, int loops, bool reports) {
  maskrcnn::Options options;
  options.threads = 1;
  const auto opened = maskrcnn::Detector::open(model, options);
  if (!opened) return check(false, opened.error().message);
  for (int loop = 0; loop < loops && !has_failed; ++loop) {
    once(opened.value(), loop);
    if (reports && (loop + 1 == loops / 10 || loop + 1 == loops)) std::printf("%d %ld\n", loop + 1, resident());
  }
}

}  // namespace

int main(int count, char** texts) {
  if (count < 3) return 1;
  const int num_threads = count > 3 ? std::atoi(texts[3]) : 1;
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) threads.emplace_back(run, texts[1], std::atoi(texts[2]), i == 0);
  for (std::thread& thread : threads) thread.join();
  return has_failed ? 2 : 0;
}
