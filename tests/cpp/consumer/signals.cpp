// Whether signals are handled after detectors that went in the order they came: signals MODEL. What a library leaves
// behind as the thread's stack for signal handlers is where the next handler runs.
#include <maskrcnn/detector.h>
#include <signal.h>

#include <cstdio>
#include <cstring>
#include <optional>
#include <vector>

namespace {

volatile sig_atomic_t handled = 0;

void handle(int number) { handled = number; }

std::optional<maskrcnn::Detector> opened(const char* path) {
  maskrcnn::Options options;
  options.threads = 1;
  auto result = maskrcnn::Detector::open(path, options);
  if (result) return std::move(result).value();
  std::fprintf(stderr, "%s\n", result.error().message.c_str());
  return std::nullopt;
}

bool is_same(const stack_t& a, const stack_t& b) {
  return a.ss_sp == b.ss_sp && a.ss_flags == b.ss_flags && a.ss_size == b.ss_size;
}

}  // namespace

int main(int count, char** texts) {
  if (count != 2) return 1;
  struct sigaction action;
  std::memset(&action, 0, sizeof action);
  action.sa_handler = handle;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGTERM, &action, nullptr);
  stack_t before, after;
  sigaltstack(nullptr, &before);

  auto first = opened(texts[1]), second = opened(texts[1]);
  if (!first || !second) return 2;
  first.reset();
  second.reset();
  // Whoever freed memory, it is another's now.
  std::vector<std::vector<char>> blocks(100, std::vector<char>(1 << 16, 1));
  sigaltstack(nullptr, &after);
  std::printf("stack %s\n", is_same(before, after) ? "as before" : "of somebody else's");
  std::fflush(stdout);
  raise(SIGTERM);
  std::printf("handled %d\n", static_cast<int>(handled));
  return blocks.back().back() == 1 ? 0 : 3;
}
