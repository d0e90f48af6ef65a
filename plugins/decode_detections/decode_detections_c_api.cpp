#include "plugins/common/c_api.h"
#include "plugins/decode_detections/decode_detections_kernel.h"

using namespace maskrcnn;

MASKRCNN_ARGUMENTS(DecodeDetectionsArguments);

MASKRCNN_EXPORT int maskrcnn_decode_detections(const DecodeDetectionsArguments* arguments, void* stream) {
  return launch_decode_detections(*arguments, static_cast<cudaStream_t>(stream));
}
