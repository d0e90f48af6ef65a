#include "plugins/common/c_api.h"
#include "plugins/grid_sample/grid_sample_kernel.h"

using namespace maskrcnn;

MASKRCNN_ARGUMENTS(GridSampleArguments);

MASKRCNN_EXPORT int maskrcnn_grid_sample(const GridSampleArguments* arguments, void* stream) {
  return launch_grid_sample(*arguments, static_cast<cudaStream_t>(stream));
}
