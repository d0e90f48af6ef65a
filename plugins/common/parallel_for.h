// A loop over independent tasks on all cores, for the CPU reference only.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace maskrcnn {

// More threads than this no longer pay for being started: a call lasts milliseconds.
constexpr unsigned kMaxThreads = 16;

inline int64_t num_worker_threads() {
  return static_cast<int64_t>(std::clamp(std::thread::hardware_concurrency(), 1u, kMaxThreads));
}

// Calls task(0) ... task(num_tasks - 1), each once, in any order and on any thread. Tasks must not write to the same
// memory. The first exception of a task ends the loop and is thrown here.
template <typename Task>
void parallel_for(int64_t num_tasks, const Task& task) {
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto work = [&] {
    try {
      for (int64_t i = next++; i < num_tasks; i = next++) task(i);
    } catch (...) {
      next = num_tasks;
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  const int64_t num_extra = std::min(num_worker_threads(), num_tasks) - 1;
  try {
    for (int64_t i = 0; i < num_extra; ++i) threads.emplace_back(work);
  } catch (const std::system_error&) {
    // The system gives no more threads: those that started, and this one, do the work.
  }
  work();
  for (auto& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace maskrcnn
