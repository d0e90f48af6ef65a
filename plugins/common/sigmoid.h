// Probabilities of logits, for the host and the device.
#pragma once

#include <cmath>

#include "plugins/common/host_device.h"

namespace maskrcnn {

// In float32. A large logit of either sign gives 0 or 1, NaN gives NaN.
MASKRCNN_HOST_DEVICE float sigmoid(float logit) { return 1.f / (1.f + expf(-logit)); }

}  // namespace maskrcnn
