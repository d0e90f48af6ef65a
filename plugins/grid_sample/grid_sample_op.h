// The operator grid_sampler, as mmcv 1.x exports it.
#pragma once

#include "plugins/common/op.h"

namespace maskrcnn {

OpType grid_sampler_type();

}  // namespace maskrcnn
