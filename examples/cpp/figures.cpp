#include "figures.h"

#include <dirent.h>
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

namespace {

std::int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::int64_t size = 0, pages = 0;
  file >> size >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

// Of a folder of /proc, without "." and "..".
std::int64_t num_entries(const char* folder) {
  DIR* directory = opendir(folder);
  if (directory == nullptr) return 0;
  std::int64_t count = -2;
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count;
}

// By name: the examples are built without CUDA.
std::int64_t device_bytes() {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (driver == nullptr) return -1;
  const auto memory_info = reinterpret_cast<int (*)(std::size_t*, std::size_t*)>(dlsym(driver, "cuMemGetInfo_v2"));
  std::size_t free = 0, total = 0;
  const bool is_known = memory_info != nullptr && memory_info(&free, &total) == 0;
  dlclose(driver);
  return is_known ? static_cast<std::int64_t>(total - free) : -1;
}

}  // namespace

Figures figures_now() {
  Figures found;
  found.resident_bytes = resident_bytes();
  found.threads = num_entries("/proc/self/task");
  found.file_descriptors = num_entries("/proc/self/fd") - 1;  // without the folder's own
  found.device_bytes = device_bytes();
  return found;
}
