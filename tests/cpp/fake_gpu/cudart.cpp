// What the library calls of CUDA's runtime, without a GPU. Memory is the host's. What is put on a stream is done when
// somebody waits for it, and no earlier: a wait that is missing shows. With FAKE_CUDA_EAGER it is done at once. Memory
// is freed without waiting: what still uses it shows under AddressSanitizer.
#include "cudart.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

struct CUstream_st {
  std::deque<Work> works;
  std::size_t num_given = 0, num_done = 0;
  std::vector<Work>* captured = nullptr;
};

struct CUevent_st {
  cudaStream_t stream = nullptr;
  std::size_t position = 0;  // how much of the stream's work it waits for
};

struct CUgraph_st {
  std::vector<Work> works;
};

struct CUgraphExec_st {
  std::vector<Work> works;
};

namespace {

std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;

// As long as the process: an event may wait for a stream that is destroyed.
std::vector<std::unique_ptr<CUstream_st>>& streams() {
  static auto* const all = new std::vector<std::unique_ptr<CUstream_st>>;
  return *all;
}

void advance(cudaStream_t stream, std::size_t position) {
  while (stream->num_done < position && !stream->works.empty()) {
    const Work work = std::move(stream->works.front());
    stream->works.pop_front();
    ++stream->num_done;
    work();
  }
}

std::atomic<bool> refuses_device{false}, refuses_pinned{false};

cudaError_t allocate(void** address, std::size_t size, std::atomic<bool>& refuses) {
  if (refuses.exchange(false)) return cudaErrorMemoryAllocation;
  return *address = std::malloc(size), cudaSuccess;
}

}  // namespace

void fake_cuda_refuse(bool is_pinned) { (is_pinned ? refuses_pinned : refuses_device) = true; }

void fake_cuda_enqueue(cudaStream_t stream, Work work) {
  const Lock lock(mutex);
  if (stream->captured != nullptr) return stream->captured->push_back(std::move(work));
  stream->works.push_back(std::move(work));
  ++stream->num_given;
  static const bool is_eager = std::getenv("FAKE_CUDA_EAGER") != nullptr;
  if (is_eager) advance(stream, stream->num_given);
}

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::strcpy(properties->name, "Fake GPU");
  properties->major = 9;
  properties->minor = 0;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "an error"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaMalloc(void** address, std::size_t size) { return allocate(address, size, refuses_device); }
cudaError_t cudaFree(void* address) { return std::free(address), cudaSuccess; }
cudaError_t cudaHostAlloc(void** address, std::size_t size, unsigned int) {
  return allocate(address, size, refuses_pinned);
}
cudaError_t cudaFreeHost(void* address) { return cudaFree(address); }

cudaError_t cudaMemcpy(void* target, const void* source, std::size_t size, cudaMemcpyKind) {
  return std::memcpy(target, source, size), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t size, cudaMemcpyKind, cudaStream_t stream) {
  return fake_cuda_enqueue(stream, [=] { std::memcpy(target, source, size); }), cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* target, std::size_t target_pitch, const void* source, std::size_t source_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind, cudaStream_t stream) {
  fake_cuda_enqueue(stream, [=] {
    for (std::size_t y = 0; y < height; ++y) {
      std::memcpy(static_cast<char*>(target) + y * target_pitch, static_cast<const char*>(source) + y * source_pitch,
                  width);
    }
  });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  const Lock lock(mutex);
  streams().push_back(std::make_unique<CUstream_st>());
  return *stream = streams().back().get(), cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(mutex);
  if (stream->captured != nullptr) return cudaErrorStreamCaptureUnsupported;
  return advance(stream, stream->num_given), cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) { return *event = new CUevent_st, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(mutex);
  return *event = {stream, stream->num_given}, cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(mutex);
  if (event->stream != nullptr) advance(event->stream, event->position);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  const Lock lock(mutex);
  const CUevent_st now = *event;
  if (now.stream != nullptr) fake_cuda_enqueue(stream, [now] { advance(now.stream, now.position); });
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Lock lock(mutex);
  return stream->captured = new std::vector<Work>, cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(mutex);
  const std::unique_ptr<std::vector<Work>> works(std::exchange(stream->captured, nullptr));
  return *graph = new CUgraph_st{*works}, cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return *executable = new CUgraphExec_st{graph->works}, cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return delete executable, cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const Work& work : executable->works) fake_cuda_enqueue(stream, work);
  return cudaSuccess;
}

}  // extern "C"
