// The operator DecodeProposals.
#pragma once

#include "plugins/common/op.h"

namespace maskrcnn {

OpType decode_proposals_type();

}  // namespace maskrcnn
