// What a forked process is told of a detector and a batch that were there before: forked MODEL BACKEND.
#include <maskrcnn/detector.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <optional>
#include <vector>

namespace {

constexpr unsigned kSeconds = 30;  // until a child that hangs is ended

std::optional<maskrcnn::Detector> opened(const char* path, const char* backend) {
  maskrcnn::Options options;
  options.threads = 2;
  options.backend = backend;
  auto result = maskrcnn::Detector::open(path, options);
  if (!result) return std::nullopt;
  return std::move(result).value();
}

template <typename Made>
void print(const char* what, const maskrcnn::Result<Made>& result) {
  std::printf("%s: %s\n", what, result ? "expected an error" : result.error().message.c_str());
}

void print_found(const char* what, const maskrcnn::Result<std::vector<maskrcnn::Detections>>& result) {
  if (!result) return print(what, result);
  std::printf("%s: %zu found\n", what, result.value()[0].size());
}

}  // namespace

int main(int count, char** texts) {
  if (count != 3) return 1;
  std::vector<std::uint8_t> pixels(40 * 60 * 3, 200);
  maskrcnn::Image image;
  image.pixels = pixels.data();
  image.height = 40;
  image.width = 60;
  auto detector = opened(texts[1], texts[2]);
  if (!detector || !detector->detect(&image, 1)) return 2;
  auto submitted = detector->submit(&image, 1);
  if (!submitted) return 2;
  std::optional<maskrcnn::Pending> pending(std::move(submitted).value());

  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(kSeconds);
    print_found("detect", detector->detect(&image, 1));
    print("submit", detector->submit(&image, 1));
    print_found("wait", pending->wait());
    auto own = opened(texts[1], texts[2]);
    if (own) print_found("opened there", own->detect(&image, 1));
    own.reset();
    pending.reset();
    detector.reset();
    std::printf("destroyed\n");
    std::fflush(stdout);
    _exit(0);  // ONNX Runtime's handlers of exit() wait for a thread that the child has not
  }
  int status = 0;
  waitpid(child, &status, 0);
  std::printf("ended %d\n", status);
  print_found("here", pending->wait());
  return 0;
}
