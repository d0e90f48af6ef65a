// The operator PaddedSpaceToDepth.
#pragma once

#include "plugins/common/op.h"

namespace maskrcnn {

OpType padded_space_to_depth_type();

}  // namespace maskrcnn
