// The operator PasteMasks.
#pragma once

#include "plugins/common/op.h"

namespace maskrcnn {

// default_output_type: of the attribute output_type; which types a plugin may return depends on TensorRT.
OpType paste_masks_type(const char* default_output_type);

}  // namespace maskrcnn
