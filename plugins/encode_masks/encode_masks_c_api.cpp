#include "plugins/common/c_api.h"
#include "plugins/encode_masks/encode_masks_kernel.h"

using namespace maskrcnn;

MASKRCNN_ARGUMENTS(TargetImage);
MASKRCNN_ARGUMENTS(EncodeMasksArguments);

MASKRCNN_EXPORT int maskrcnn_encode_masks(const EncodeMasksArguments* arguments, void* stream) {
  return launch_encode_masks(*arguments, static_cast<cudaStream_t>(stream));
}
