// The best k of a row on the GPU, for the kernels that choose: SelectTop and DecodeProposals. CUDA only.
//
// A tournament. One block finds the best k of a chunk of its row, and leaves them in the order of their indices;
// survivors of all chunks of a row are the row of the next round, up to the one that a single block takes, which also
// sorts.
//
// A block finds its cut, the k-th best key, by radix select: four histograms of eight bits each, from the top. Blocks
// share nothing, and nothing is placed by atomics: they only count. Since survivors keep their order, ties are cut by
// place in every round.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "plugins/select_top/select_top_kernel.h"
#include "plugins/select_top/select_top_math.h"

namespace maskrcnn {
namespace tournament {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr size_t kAlignment = 256;
constexpr int kMaxGridY = 65535;

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
static_assert(kWarps == kWarp, "a warp sums one number of each warp");
constexpr int kPerLane = 8;  // loads in flight
constexpr int kPerWarp = kWarp * kPerLane;

constexpr int kDigitBits = 8;
constexpr int kBins = 1 << kDigitBits;
constexpr int kBinsPerLane = kBins / kWarp;

// At least twice the largest k, so that every round halves the row at least.
constexpr int64_t kMinChunk = kThreads * kPerLane;
static_assert(kMinChunk >= 2 * kSelectTopMaxK, "rounds end");
constexpr int kMaxRounds = 3;

// Keys whose upper bits are below the prefix are taken, and so are the first `ties` whose upper bits equal it.
struct Cut {
  uint32_t prefix;
  int shift;  // key >> shift are the upper bits
  int ties;
  bool all_ties;  // nothing equal is left out: no lower bit matters
};

struct SelectShared {
  uint32_t histogram[kBins];
  int below[kWarps];
  int equal[kWarps];
  Cut cut;
};

// What a round reads: scores in the first, entries in the others. `load` and `entry` are apart so that loads overlap.
struct ScoreSource {
  using Element = float;
  const float* scores;
  uint32_t first_index;  // of scores[0] in its row

  static __device__ ScoreSource at(const void* data, int64_t row_begin, int64_t first) {
    return {static_cast<const float*>(data) + row_begin + first, static_cast<uint32_t>(first)};
  }
  __device__ float load(int place) const { return __ldg(scores + place); }
  __device__ uint64_t entry(float score, int place) const {
    return ranked_entry(descending_key(score), first_index + static_cast<uint32_t>(place));
  }
};

struct EntrySource {
  using Element = uint64_t;
  const uint64_t* entries;

  static __device__ EntrySource at(const void* data, int64_t row_begin, int64_t first) {
    return {static_cast<const uint64_t*>(data) + row_begin + first};
  }
  __device__ uint64_t load(int place) const { return __ldg(entries + place); }
  __device__ uint64_t entry(uint64_t element, int) const { return element; }
};

// The places of this warp: a contiguous part of [0, count).
struct Segment {
  int begin;
  int end;
};

inline __device__ Segment own_segment(int count) {
  const int steps = (count + kThreads - 1) / kThreads;  // of a warp
  const int begin = min(count, static_cast<int>(threadIdx.x / kWarp) * steps * kWarp);
  return {begin, min(count, begin + steps * kWarp)};
}

// Calls visit(entry, whether it exists) for every place of the segment in order, 32 at a time: all lanes call it.
template <typename Source, typename Visit>
__device__ void visit_segment(const Source& source, const Segment& segment, const Visit& visit) {
  const int lane = threadIdx.x % kWarp;
  for (int first = segment.begin; first < segment.end; first += kPerWarp) {
    typename Source::Element elements[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int place = first + i * kWarp + lane;
      elements[i] = place < segment.end ? source.load(place) : typename Source::Element{};
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int place = first + i * kWarp + lane;
      if (first + i * kWarp < segment.end) visit(source.entry(elements[i], place), place < segment.end);
    }
  }
}

// Looks for the digit at which `ties` keys, counted from digit 0, are reached. One warp calls it; one lane finds it.
inline __device__ void extend_cut(SelectShared& shared, const Cut& cut, int shift) {
  const int lane = threadIdx.x;
  int counts[kBinsPerLane];
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kBinsPerLane; ++i) {
    counts[i] = static_cast<int>(shared.histogram[lane * kBinsPerLane + i]);
    sum += counts[i];
  }
  int inclusive = sum;
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  int before = inclusive - sum;
  if (before >= cut.ties || inclusive < cut.ties) return;
#pragma unroll
  for (int i = 0; i < kBinsPerLane; ++i) {
    if (before < cut.ties && cut.ties <= before + counts[i]) {
      const uint32_t digit = static_cast<uint32_t>(lane * kBinsPerLane + i);
      const int ties = cut.ties - before;
      shared.cut = {cut.prefix << kDigitBits | digit, shift, ties, ties == counts[i]};
    }
    before += counts[i];
  }
}

// The cut that takes `take` of `count` elements, 1 <= take <= count. The same for all threads, which all call it.
template <typename Source>
__device__ Cut find_cut(SelectShared& shared, const Source& source, const Segment& segment, int take, int count) {
  if (take == count) return {0xffffffffu, 0, count, true};
  Cut cut{0, 0, take, false};
  for (int shift = 32 - kDigitBits; shift >= 0 && !cut.all_ties; shift -= kDigitBits) {
    if (threadIdx.x < kBins) shared.histogram[threadIdx.x] = 0;
    __syncthreads();
    visit_segment(source, segment, [&](uint64_t entry, bool exists) {
      const uint32_t upper = key_of(entry) >> shift;
      if (exists && upper >> kDigitBits == cut.prefix) atomicAdd(&shared.histogram[upper & (kBins - 1)], 1u);
    });
    __syncthreads();
    if (threadIdx.x < kWarp) extend_cut(shared, cut, shift);
    __syncthreads();
    cut = shared.cut;
  }
  return cut;
}

struct Side {
  bool is_below;
  bool is_equal;
};

inline __device__ Side side_of(const Cut& cut, uint64_t entry, bool exists) {
  const uint32_t upper = key_of(entry) >> cut.shift;
  return {exists && upper < cut.prefix, exists && upper == cut.prefix};
}

// Calls emit(place, entry) once for every element taken; places 0 ... are in the elements' order. All threads call it.
template <typename Source, typename Emit>
__device__ void emit_taken(SelectShared& shared, const Source& source, const Segment& segment, const Cut& cut,
                           const Emit& emit) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  int below = 0;
  int equal = 0;
  visit_segment(source, segment, [&](uint64_t entry, bool exists) {
    const Side side = side_of(cut, entry, exists);
    below += __popc(__ballot_sync(kAllLanes, side.is_below));
    equal += __popc(__ballot_sync(kAllLanes, side.is_equal));
  });
  if (lane == 0) {
    shared.below[warp] = below;
    shared.equal[warp] = equal;
  }
  __syncthreads();
  below = lane < warp ? shared.below[lane] : 0;
  equal = lane < warp ? shared.equal[lane] : 0;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    below += __shfl_xor_sync(kAllLanes, below, step);
    equal += __shfl_xor_sync(kAllLanes, equal, step);
  }
  const unsigned lanes_before = (1u << lane) - 1;
  visit_segment(source, segment, [&](uint64_t entry, bool exists) {
    const Side side = side_of(cut, entry, exists);
    const unsigned all_below = __ballot_sync(kAllLanes, side.is_below);
    const unsigned all_equal = __ballot_sync(kAllLanes, side.is_equal);
    const int own_below = below + __popc(all_below & lanes_before);
    const int own_equal = equal + __popc(all_equal & lanes_before);
    if (side.is_below || (side.is_equal && own_equal < cut.ties)) emit(own_below + min(own_equal, cut.ties), entry);
    below += __popc(all_below);
    equal += __popc(all_equal);
  });
}

// Rows of a round and how they are cut. All chunks but the last hold more than k elements and leave k.
struct Round {
  const void* data;  // (batch, count) scores or entries
  int32_t batch;
  int32_t count;
  int32_t chunk;
  int32_t k;
  uint64_t* survivors;    // (batch, num_survivors): not used in the last round
  int32_t num_survivors;  // per row
};

// Leaves the survivors of one chunk of a row. All threads call it.
template <typename Source>
__device__ void select_chunk(SelectShared& shared, const Round& round, int64_t row, int64_t chunk) {
  const int64_t first = chunk * round.chunk;
  const int count = static_cast<int>(min(static_cast<int64_t>(round.chunk), round.count - first));
  const Source source = Source::at(round.data, row * round.count, first);
  const Segment segment = own_segment(count);
  uint64_t* out = round.survivors + row * round.num_survivors + chunk * round.k;
  __syncthreads();  // the row before is done with the shared memory
  const Cut cut = find_cut(shared, source, segment, min(round.k, count), count);
  emit_taken(shared, source, segment, cut, [&](int place, uint64_t entry) { out[place] = entry; });
}

// Bitonic, upwards. size: a power of two. All threads call it. Pairs less than two warps apart lie within 64 entries
// that one warp works on, so that only the warp has to wait.
inline __device__ void sort_entries(uint64_t* entries, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int stride = run / 2; stride > 0; stride /= 2) {
      for (int pair = threadIdx.x; pair < size / 2; pair += kThreads) {
        const int low = 2 * pair - (pair & (stride - 1));
        const uint64_t a = entries[low];
        const uint64_t b = entries[low + stride];
        if ((a > b) == ((low & run) == 0)) {
          entries[low] = b;
          entries[low + stride] = a;
        }
      }
      const int next_stride = stride > 1 ? stride / 2 : run;
      if (stride > kWarp || next_stride > kWarp) {
        __syncthreads();
      } else {
        __syncwarp();
      }
    }
  }
}

// Leaves the best k of a row, which is one chunk, in best[0] ... best[k - 1], sorted. best: shared memory, for the next
// power of two of entries. All threads call it.
template <typename Source>
__device__ void select_sorted(SelectShared& shared, uint64_t* best, const Round& round, int64_t row) {
  int size = 1;
  while (size < round.k) size *= 2;
  const Source source = Source::at(round.data, row * round.count, 0);
  const Segment segment = own_segment(round.count);
  __syncthreads();  // the row before is done with the shared memory
  const Cut cut = find_cut(shared, source, segment, round.k, round.count);
  emit_taken(shared, source, segment, cut, [&](int place, uint64_t entry) { best[place] = entry; });
  for (int i = round.k + static_cast<int>(threadIdx.x); i < size; i += kThreads) best[i] = ~uint64_t{0};
  __syncthreads();
  sort_entries(best, size);
  __syncthreads();
}

inline int64_t chunks_of(int64_t count, int64_t chunk) { return (count + chunk - 1) / chunk; }

inline int64_t survivors_of(int64_t count, int64_t chunk, int64_t k) {
  const int64_t last = count - (chunks_of(count, chunk) - 1) * chunk;
  return (chunks_of(count, chunk) - 1) * k + (last < k ? last : k);
}

// The smallest chunk, a power of two, with which the rounds suffice.
inline int64_t chunk_for(int64_t count, int64_t k) {
  for (int64_t chunk = kMinChunk;; chunk *= 2) {
    int64_t left = count;
    for (int round = 1; round < kMaxRounds && left > chunk; ++round) left = survivors_of(left, chunk, k);
    if (left <= chunk) return chunk;
  }
}

inline size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Entries per row after each round but the last, with the smallest chunk: larger ones leave fewer. Unlike the numbers
// themselves, which fall where the chunk grows, these bounds never fall when a row grows.
struct Bounds {
  int64_t first;
  int64_t second;
};

inline Bounds bounds_of(int64_t count, int64_t k) {
  const int64_t first = count > kMinChunk ? chunks_of(count, kMinChunk) * k : 0;
  return {first, first > kMinChunk ? chunks_of(first, kMinChunk) * k : 0};
}


// Bytes of the survivors of `batch` rows; grows with each argument.
inline size_t survivors_size(int64_t batch, int64_t count, int64_t k) {
  const Bounds bounds = bounds_of(count, k);
  const size_t entry_bytes = static_cast<size_t>(batch) * sizeof(uint64_t);
  return aligned(entry_bytes * static_cast<size_t>(bounds.first)) +
         aligned(entry_bytes * static_cast<size_t>(bounds.second));
}

// The rounds of a batch of rows, as the host goes through them: while start_round, a launch and finish_round; then the
// last round, which sorts.
struct Rounds {
  Round next;
  uint64_t* survivors[kMaxRounds - 1];
  int num_done;  // 0: the next round reads scores, otherwise entries
};

// scores: (batch, count). workspace: survivors_size bytes, aligned to 256. 1 <= k <= count.
inline Rounds rounds_of(const float* scores, int32_t batch, int32_t count, int32_t k, void* workspace) {
  const size_t first_size = aligned(static_cast<size_t>(batch) * sizeof(uint64_t) *
                                    static_cast<size_t>(bounds_of(count, k).first));
  Rounds rounds{};
  rounds.next = {scores, batch, count, static_cast<int32_t>(chunk_for(count, k)), k, nullptr, 0};
  rounds.survivors[0] = static_cast<uint64_t*>(workspace);
  rounds.survivors[1] = reinterpret_cast<uint64_t*>(static_cast<char*>(workspace) + first_size);
  return rounds;
}

// False where one block per row can take what is left.
inline bool start_round(Rounds& rounds) {
  Round& round = rounds.next;
  if (round.count <= round.chunk) return false;
  round.survivors = rounds.survivors[rounds.num_done];
  round.num_survivors = static_cast<int32_t>(survivors_of(round.count, round.chunk, round.k));
  return true;
}

inline void finish_round(Rounds& rounds) {
  rounds.next.data = rounds.next.survivors;
  rounds.next.count = rounds.next.num_survivors;
  ++rounds.num_done;
}

}  // namespace tournament
}  // namespace maskrcnn
