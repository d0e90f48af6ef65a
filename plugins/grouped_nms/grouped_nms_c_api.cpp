#include "plugins/common/c_api.h"
#include "plugins/grouped_nms/grouped_nms_kernel.h"

using namespace maskrcnn;

MASKRCNN_ARGUMENTS(GroupedNmsArguments);

MASKRCNN_EXPORT size_t maskrcnn_grouped_nms_workspace_size(int32_t batch, int32_t num_boxes) {
  return grouped_nms_workspace_size(batch, num_boxes);
}

MASKRCNN_EXPORT int maskrcnn_grouped_nms(const GroupedNmsArguments* arguments, void* workspace, size_t workspace_size,
                                         void* stream) {
  return launch_grouped_nms(*arguments, workspace, workspace_size, static_cast<cudaStream_t>(stream));
}
