#include "plugins/common/c_api.h"
#include "plugins/padded_space_to_depth/padded_space_to_depth_kernel.h"

using namespace maskrcnn;

MASKRCNN_ARGUMENTS(PaddedSpaceToDepthArguments);

MASKRCNN_EXPORT int maskrcnn_padded_space_to_depth(const PaddedSpaceToDepthArguments* arguments, void* stream) {
  return launch_padded_space_to_depth(*arguments, static_cast<cudaStream_t>(stream));
}
