#include "plugins/common/c_api.h"
#include "plugins/prepare_images/prepare_images_kernel.h"

using namespace maskrcnn;

MASKRCNN_ARGUMENTS(SourceImage);
MASKRCNN_ARGUMENTS(PrepareImagesArguments);

MASKRCNN_EXPORT int maskrcnn_prepare_images(const PrepareImagesArguments* arguments, void* stream) {
  return launch_prepare_images(*arguments, static_cast<cudaStream_t>(stream));
}
