// A box, for the host and the device.
#pragma once

namespace maskrcnn {

struct Box {
  float x1, y1, x2, y2;  // px
};

}  // namespace maskrcnn
