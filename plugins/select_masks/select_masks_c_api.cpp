#include "plugins/common/c_api.h"
#include "plugins/select_masks/select_masks_kernel.h"

using namespace maskrcnn;

MASKRCNN_ARGUMENTS(SelectMasksArguments);

MASKRCNN_EXPORT int maskrcnn_select_masks(const SelectMasksArguments* arguments, void* stream) {
  return launch_select_masks(*arguments, static_cast<cudaStream_t>(stream));
}
