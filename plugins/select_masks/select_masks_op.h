// The operator SelectMasks.
#pragma once

#include "plugins/common/op.h"

namespace maskrcnn {

OpType select_masks_type();

}  // namespace maskrcnn
