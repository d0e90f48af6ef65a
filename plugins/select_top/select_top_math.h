// The order of scores: what is compared, sorted and cut on the CPU and on the GPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "plugins/common/host_device.h"

namespace maskrcnn {

// The better score has the smaller key. NaN has the largest, whatever its sign and payload: it comes after -inf. Zero
// has one key for both signs.
MASKRCNN_HOST_DEVICE uint32_t descending_key(float score) {
  if (!(score == score)) return 0xffffffffu;
  const float unsigned_zero = score + 0.f;
  uint32_t bits;
  memcpy(&bits, &unsigned_zero, sizeof(bits));
  const uint32_t ascending = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
  return ~ascending;
}

// A score and its place in the row. Sorting these upwards sorts by descending score, then ascending index.
MASKRCNN_HOST_DEVICE uint64_t ranked_entry(uint32_t key, uint32_t index) {
  return static_cast<uint64_t>(key) << 32 | index;
}

MASKRCNN_HOST_DEVICE uint32_t key_of(uint64_t entry) { return static_cast<uint32_t>(entry >> 32); }

MASKRCNN_HOST_DEVICE uint32_t index_of(uint64_t entry) { return static_cast<uint32_t>(entry); }

}  // namespace maskrcnn
