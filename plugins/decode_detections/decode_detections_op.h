// The operator DecodeDetections.
#pragma once

#include "plugins/common/op.h"

namespace maskrcnn {

OpType decode_detections_type();

}  // namespace maskrcnn
