// What the C functions of the operators share, in both libraries.
#include "plugins/common/c_api.h"

#include <cstring>

namespace maskrcnn {

size_t ArgumentsSize::of(const char* name) {
  for (const ArgumentsSize* size = first_; name != nullptr && size != nullptr; size = size->next_) {
    if (std::strcmp(size->name_, name) == 0) return size->size_;
  }
  return 0;
}

}  // namespace maskrcnn

// Raised with every change of a structure or a function that runtime.device.kernels declares; a new one is looked for
// by its name.
MASKRCNN_EXPORT int32_t maskrcnn_images_abi() { return 3; }

// The size of an argument structure, by its name in C++.
MASKRCNN_EXPORT size_t maskrcnn_arguments_size(const char* name) { return maskrcnn::ArgumentsSize::of(name); }

MASKRCNN_EXPORT const char* maskrcnn_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
