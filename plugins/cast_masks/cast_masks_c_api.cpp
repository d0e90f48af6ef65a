#include "plugins/cast_masks/cast_masks_kernel.h"
#include "plugins/common/c_api.h"

using namespace maskrcnn;

MASKRCNN_ARGUMENTS(CastMasksArguments);

MASKRCNN_EXPORT int maskrcnn_cast_masks(const CastMasksArguments* arguments, void* stream) {
  return launch_cast_masks(*arguments, static_cast<cudaStream_t>(stream));
}
