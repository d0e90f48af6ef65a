// What a file <op>/<op>_c_api.cpp needs: launchers as C functions, which Python calls through ctypes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "plugins/common/export.h"

namespace maskrcnn {

// The size of a structure that Python declares again: it asks for it by name and refuses a library that has another.
// A static object in <op>_c_api.cpp, so that a new structure is no edit of another file.
class ArgumentsSize {
 public:
  ArgumentsSize(const char* name, size_t size) : name_(name), size_(size), next_(first_) { first_ = this; }

  // 0: there is no structure of that name.
  static size_t of(const char* name);

 private:
  inline static const ArgumentsSize* first_ = nullptr;
  const char* name_;
  size_t size_;
  const ArgumentsSize* next_;
};

}  // namespace maskrcnn

#define MASKRCNN_ARGUMENTS(type) static const maskrcnn::ArgumentsSize type##_size(#type, sizeof(maskrcnn::type))
