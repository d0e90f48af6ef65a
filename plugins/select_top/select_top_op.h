// The operator SelectTop.
#pragma once

#include "plugins/common/op.h"

namespace maskrcnn {

OpType select_top_type();

}  // namespace maskrcnn
