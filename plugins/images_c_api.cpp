// The kernels for images as C functions, in both libraries: the runtime calls them through ctypes, without PyTorch.
#include "plugins/cast_masks/cast_masks_kernel.h"
#include "plugins/common/export.h"
#include "plugins/encode_masks/encode_masks_kernel.h"
#include "plugins/prepare_images/prepare_images_kernel.h"

using namespace maskrcnn;

// Raised with every change of a structure or a function here; a new one is looked for by its name.
MASKRCNN_EXPORT int32_t maskrcnn_images_abi() { return 2; }

MASKRCNN_EXPORT const char* maskrcnn_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

// The sizes of the structures, which Python declares again: a mismatch is found when it loads the library.
MASKRCNN_EXPORT size_t maskrcnn_images_arguments_size(int which) {
  const size_t sizes[] = {sizeof(SourceImage), sizeof(PrepareImagesArguments), sizeof(TargetImage),
                          sizeof(EncodeMasksArguments), sizeof(CastMasksArguments)};
  return which >= 0 && which < static_cast<int>(sizeof(sizes) / sizeof(*sizes)) ? sizes[which] : 0;
}

MASKRCNN_EXPORT int maskrcnn_prepare_images(const PrepareImagesArguments* arguments, void* stream) {
  return launch_prepare_images(*arguments, static_cast<cudaStream_t>(stream));
}

// None, and the pointer may be null: part of the interface, so that a kernel that needs scratch leaves it as it is.
MASKRCNN_EXPORT size_t maskrcnn_encode_masks_workspace_size(const EncodeMasksArguments* /*arguments*/) { return 0; }

MASKRCNN_EXPORT int maskrcnn_encode_masks(const EncodeMasksArguments* arguments, void* /*workspace*/,
                                          size_t /*workspace_size*/, void* stream) {
  return launch_encode_masks(*arguments, static_cast<cudaStream_t>(stream));
}

MASKRCNN_EXPORT int maskrcnn_cast_masks(const CastMasksArguments* arguments, void* stream) {
  return launch_cast_masks(*arguments, static_cast<cudaStream_t>(stream));
}
