// The best scores of each row on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "plugins/common/parallel_for.h"
#include "plugins/select_top/select_top_math.h"

namespace maskrcnn {

// scores: (batch, num_scores). values, indices: (batch, k), k <= num_scores < 2^32.
inline void select_top(const float* scores, int64_t batch, int64_t num_scores, int64_t k, float* values,
                       int32_t* indices) {
  parallel_for(batch, [=](int64_t row) {
    const float* own = scores + row * num_scores;
    std::vector<uint64_t> entries(num_scores);
    for (int64_t i = 0; i < num_scores; ++i) {
      entries[i] = ranked_entry(descending_key(own[i]), static_cast<uint32_t>(i));
    }
    std::partial_sort(entries.begin(), entries.begin() + k, entries.end());
    for (int64_t i = 0; i < k; ++i) {
      const uint32_t index = index_of(entries[i]);
      values[row * k + i] = own[index];
      indices[row * k + i] = static_cast<int32_t>(index);
    }
  });
}

}  // namespace maskrcnn
