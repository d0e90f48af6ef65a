// What this process takes of the machine: Linux's /proc, and the driver where a backend has loaded it.
#pragma once

#include <cstdint>

struct Figures {
  std::int64_t resident_bytes = 0;
  std::int64_t threads = 0;
  std::int64_t file_descriptors = 0;
  std::int64_t device_bytes = -1;  // taken of the calling thread's GPU, by every process; -1: there is none
};

Figures figures_now();
