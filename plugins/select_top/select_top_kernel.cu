// SelectTop on the GPU: the tournament for rows of one length. One to three launches, as the shapes say; 182400 scores
// take three for k = 1000.
#include <cuda_runtime.h>

#include "plugins/select_top/select_top_kernel.h"
#include "plugins/select_top/select_top_math.h"
#include "plugins/select_top/select_top_tournament.h"

namespace maskrcnn {
namespace {

using namespace tournament;

template <typename Source>
__global__ void __launch_bounds__(kThreads) select_chunks(Round round) {
  __shared__ SelectShared shared;
  for (int64_t b = blockIdx.y; b < round.batch; b += gridDim.y) select_chunk<Source>(shared, round, b, blockIdx.x);
}

// One block per row, which is one chunk.
template <typename Source>
__global__ void __launch_bounds__(kThreads) select_and_sort(Round round, SelectTopArguments in) {
  __shared__ SelectShared shared;
  __shared__ uint64_t best[kSelectTopMaxK];
  for (int64_t b = blockIdx.x; b < in.batch; b += gridDim.x) {
    select_sorted<Source>(shared, best, round, b);
    for (int i = threadIdx.x; i < in.k; i += kThreads) {
      const uint32_t index = index_of(best[i]);
      in.values[b * in.k + i] = in.scores[b * in.num_scores + index];
      in.indices[b * in.k + i] = static_cast<int32_t>(index);
    }
  }
}

bool is_valid(int64_t batch, int64_t num_scores, int64_t k) {
  return batch >= 0 && k >= 1 && k <= kSelectTopMaxK && num_scores >= k && num_scores <= kSelectTopMaxScores;
}

template <typename Source>
void launch_round(const Round& round, cudaStream_t stream) {
  const unsigned rows = static_cast<unsigned>(round.batch < kMaxGridY ? round.batch : kMaxGridY);
  const unsigned chunks = static_cast<unsigned>(chunks_of(round.count, round.chunk));
  select_chunks<Source><<<dim3(chunks, rows), kThreads, 0, stream>>>(round);
}

}  // namespace

size_t select_top_workspace_size(int32_t batch, int32_t num_scores, int32_t k) {
  return is_valid(batch, num_scores, k) ? survivors_size(batch, num_scores, k) : 0;
}

cudaError_t launch_select_top(const SelectTopArguments& in, void* workspace, size_t workspace_size,
                              cudaStream_t stream) {
  if (!is_valid(in.batch, in.num_scores, in.k)) return cudaErrorInvalidValue;
  if (in.batch == 0) return cudaSuccess;
  const size_t needed = select_top_workspace_size(in.batch, in.num_scores, in.k);
  if (needed > 0 && (workspace == nullptr || workspace_size < needed)) return cudaErrorInvalidValue;

  Rounds rounds = rounds_of(in.scores, in.batch, in.num_scores, in.k, workspace);
  for (; start_round(rounds); finish_round(rounds)) {
    if (rounds.num_done == 0) {
      launch_round<ScoreSource>(rounds.next, stream);
    } else {
      launch_round<EntrySource>(rounds.next, stream);
    }
  }
  const unsigned rows = static_cast<unsigned>(in.batch);
  if (rounds.num_done == 0) {
    select_and_sort<ScoreSource><<<rows, kThreads, 0, stream>>>(rounds.next, in);
  } else {
    select_and_sort<EntrySource><<<rows, kThreads, 0, stream>>>(rounds.next, in);
  }
  return cudaGetLastError();
}

}  // namespace maskrcnn
