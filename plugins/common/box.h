// A box, for the host and the device.
#pragma once

#include "plugins/common/host_device.h"

namespace maskrcnn {

struct Box {
  float x1, y1, x2, y2;  // px
};

MASKRCNN_HOST_DEVICE Box load_box(const float* corners) { return {corners[0], corners[1], corners[2], corners[3]}; }

MASKRCNN_HOST_DEVICE void store_box(const Box& box, float* corners) {
  corners[0] = box.x1;
  corners[1] = box.y1;
  corners[2] = box.x2;
  corners[3] = box.y2;
}

}  // namespace maskrcnn
