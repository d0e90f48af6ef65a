// The operator GroupedNMS.
#pragma once

#include "plugins/common/op.h"

namespace maskrcnn {

OpType grouped_nms_type();

}  // namespace maskrcnn
