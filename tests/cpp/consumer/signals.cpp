// Whether signals are handled after detectors that went in the order they came: signals MODEL. What a library leaves
// behind as the thread's stack for signal handlers is where the next handler runs.
#include <dlfcn.h>
#include <maskrcnn/detector.h>
#include <signal.h>

#include <atomic>
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

// Of a thread that set a stack for signal handlers: whether it ends with the one that it began with. A sanitizer frees
// the one that it ends with, as if it were its own.
std::atomic<int> num_left{0};

struct Watched {
  stack_t first;
  Watched() { current(&first); }
  ~Watched() {
    stack_t last;
    current(&last);
    if (!is_same(first, last)) ++num_left;
  }
  static void current(stack_t* found) { set(nullptr, found); }
  static int set(const stack_t* given, stack_t* before) {
    static const auto next = reinterpret_cast<int (*)(const stack_t*, stack_t*)>(dlsym(RTLD_NEXT, "sigaltstack"));
    return next(given, before);
  }
};

}  // namespace

// In the place of the C library's.
extern "C" int sigaltstack(const stack_t* given, stack_t* before) noexcept {
  thread_local const Watched watched;
  (void)watched;
  return Watched::set(given, before);
}

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
  std::printf("threads that ended with another's %d\n", num_left.load());
  std::fflush(stdout);
  raise(SIGTERM);
  std::printf("handled %d\n", static_cast<int>(handled));
  return blocks.back().back() == 1 ? 0 : 3;
}
