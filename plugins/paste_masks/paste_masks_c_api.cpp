#include "plugins/common/c_api.h"
#include "plugins/paste_masks/paste_masks_kernel.h"

using namespace maskrcnn;

MASKRCNN_ARGUMENTS(PasteMasksArguments);

MASKRCNN_EXPORT int maskrcnn_paste_masks(const PasteMasksArguments* arguments, void* stream) {
  return launch_paste_masks(*arguments, static_cast<cudaStream_t>(stream));
}
