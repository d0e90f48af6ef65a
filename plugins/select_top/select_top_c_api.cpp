#include "plugins/common/c_api.h"
#include "plugins/select_top/select_top_kernel.h"

using namespace maskrcnn;

MASKRCNN_ARGUMENTS(SelectTopArguments);

MASKRCNN_EXPORT size_t maskrcnn_select_top_workspace_size(int32_t batch, int32_t num_scores, int32_t k) {
  return select_top_workspace_size(batch, num_scores, k);
}

MASKRCNN_EXPORT int maskrcnn_select_top(const SelectTopArguments* arguments, void* workspace, size_t workspace_size,
                                        void* stream) {
  return launch_select_top(*arguments, workspace, workspace_size, static_cast<cudaStream_t>(stream));
}
