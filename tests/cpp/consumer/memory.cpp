// Whether calls survive that there is no memory: memory MODEL. Each is made again and again, with its first allocation
// failing, then its second, and so on, that one alone or all from there on. What is said must be an error.
#include <maskrcnn/c_api.h>
#include <maskrcnn/detector.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace {

// Of this thread: allocations until one fails, negative: none does.
thread_local long left = -1;
thread_local bool fails_from_there_on = false;
thread_local bool has_failed = false;

void* allocated(std::size_t size) noexcept {
  if (left == 0) {
    has_failed = true;
    if (!fails_from_there_on) left = -1;
    return nullptr;
  }
  if (left > 0) --left;
  return std::malloc(size > 0 ? size : 1);
}

void* allocated_or_thrown(std::size_t size) {
  void* found = allocated(size);
  if (found == nullptr) throw std::bad_alloc();
  return found;
}

}  // namespace

// In the place of the C++ library's, in this program and in every library.
void* operator new(std::size_t size) { return allocated_or_thrown(size); }
void* operator new[](std::size_t size) { return allocated_or_thrown(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return allocated(size); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return allocated(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }

namespace {

// Call `run` until nothing fails any more. It returns whether it was told of an error with a text.
template <typename Run>
bool survives(const char* name, const Run& run) {
  for (const bool from_there_on : {false, true}) {
    long count = 0;
    for (has_failed = true; has_failed; ++count) {
      has_failed = false;
      fails_from_there_on = from_there_on;
      left = count;
      const bool is_said = run();
      left = -1;
      if (has_failed && !is_said) {
        std::printf("%s: expected an error at allocation %ld, found none, or one without a text\n", name, count);
        return false;
      }
    }
    std::printf("%s: %ld allocations that %s\n", name, count - 1, from_there_on ? "fail from there on" : "fail alone");
  }
  return true;
}

template <typename Made>
bool is_said(const maskrcnn::Result<Made>& result) {
  return !result && !result.error().message.empty();
}

bool is_said(int code, maskrcnn_error* error) {
  const bool found = code != MASKRCNN_OK && maskrcnn_error_code(error) != 0 && *maskrcnn_error_message(error) != '\0';
  maskrcnn_error_free(error);
  return found;
}

}  // namespace

int main(int count, char** texts) {
  if (count != 2) return 1;
  const std::string path = texts[1], missing = path + ".none";
  const std::vector<std::uint8_t> pixels(40 * 60 * 3, 200);
  maskrcnn::Image image;
  image.pixels = pixels.data();
  image.height = 40;
  image.width = 60;
  maskrcnn::Image none;
  maskrcnn::Options options;
  options.threads = 1;
  const auto opened = maskrcnn::Detector::open(path, options);
  if (!opened) return 2;
  const maskrcnn::Detector& detector = opened.value();
  const auto found = detector.detect(&image, 1);
  if (!found || found.value()[0].size() == 0) return 2;
  const maskrcnn::Detections& detections = found.value()[0];

  maskrcnn_image c_image;
  std::memset(&c_image, 0, sizeof c_image);
  c_image.pixels = pixels.data();
  c_image.height = 40;
  c_image.width = 60;
  maskrcnn_detector *c_detector = nullptr, *no_detector = nullptr;
  maskrcnn_results *results = nullptr, *no_results = nullptr;
  if (maskrcnn_open(path.c_str(), nullptr, &c_detector, nullptr) != MASKRCNN_OK) return 2;
  if (maskrcnn_detect(c_detector, &c_image, 1, 0, nullptr, &results, nullptr) != MASKRCNN_OK) return 2;
  c_image.height = -1;
  std::vector<std::uint8_t> mask(40 * 60);

  const bool all = survives("open", [&] { return is_said(maskrcnn::Detector::open(missing, options)); }) &&
                   survives("refused", [&] { return is_said(detector.detect(&none, 1)); }) &&
                   survives("rle", [&] { return is_said(detections.rle(0)); }) &&
                   survives("no rle", [&] { return is_said(detections.rle(9)); }) &&
                   survives("mask", [&] { return is_said(detections.mask(0)); }) &&
                   survives("open in C",
                            [&] {
                              maskrcnn_error* error = nullptr;
                              const int code = maskrcnn_open(missing.c_str(), nullptr, &no_detector, &error);
                              return is_said(code, error);
                            }) &&
                   survives("refused in C",
                            [&] {
                              maskrcnn_error* error = nullptr;
                              const int code =
                                  maskrcnn_detect(c_detector, &c_image, 1, 0, nullptr, &no_results, &error);
                              return is_said(code, error);
                            }) &&
                   survives("rle in C",
                            [&] {
                              maskrcnn_error* error = nullptr;
                              char* counts = nullptr;
                              const int code = maskrcnn_rle(results, 0, 0, &counts, &error);
                              maskrcnn_string_free(counts);
                              return is_said(code, error);
                            }) &&
                   survives("no rle in C",
                            [&] {
                              maskrcnn_error* error = nullptr;
                              char* counts = nullptr;
                              const int code = maskrcnn_rle(results, 0, 9, &counts, &error);
                              return is_said(code, error);
                            }) &&
                   survives("mask in C", [&] {
                     maskrcnn_error* error = nullptr;
                     const int code = maskrcnn_mask(results, 0, 0, mask.data(), 0, &error);
                     return is_said(code, error);
                   });
  maskrcnn_results_free(results);
  maskrcnn_detector_free(c_detector);
  return all ? 0 : 3;
}
