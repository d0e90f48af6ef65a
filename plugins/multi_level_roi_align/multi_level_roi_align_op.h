// The operators MultiLevelRoiAlign and, with one level and mmcv 1.x's attributes, MMCVRoiAlign.
#pragma once

#include "plugins/common/op.h"

namespace maskrcnn {

OpType multi_level_roi_align_type();
OpType mmcv_roi_align_type();

}  // namespace maskrcnn
