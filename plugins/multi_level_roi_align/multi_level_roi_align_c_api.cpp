#include "plugins/common/c_api.h"
#include "plugins/multi_level_roi_align/multi_level_roi_align_kernel.h"

using namespace maskrcnn;

MASKRCNN_ARGUMENTS(MultiLevelRoiAlignArguments);

MASKRCNN_EXPORT int maskrcnn_multi_level_roi_align(const MultiLevelRoiAlignArguments* arguments, void* stream) {
  return launch_multi_level_roi_align(*arguments, static_cast<cudaStream_t>(stream));
}
