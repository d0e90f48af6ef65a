// CUDA's streams, events and memory as objects that release themselves.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>

#include "errors.h"

namespace maskrcnn {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    failed("CUDA: expected ", what, " to work, found ", cudaGetErrorString(status), " (error ",
           static_cast<int>(status), ")");
  }
}

// Makes a device the calling thread's, and the one before it again at the end.
class ActiveDevice {
 public:
  explicit ActiveDevice(int index) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    check_cuda(cudaSetDevice(index), "cudaSetDevice");
  }
  ~ActiveDevice() { cudaSetDevice(before_); }
  ActiveDevice(const ActiveDevice&) = delete;
  ActiveDevice& operator=(const ActiveDevice&) = delete;

 private:
  int before_ = 0;
};

class Stream {
 public:
  Stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  void synchronize() const { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  // A wait leaves the core to others.
  Event() {
    check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync), "cudaEventCreate");
  }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) { check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  void hold(cudaStream_t stream) const { check_cuda(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent"); }
  void wait() const { check_cuda(cudaEventSynchronize(event_), "cudaEventSynchronize"); }

 private:
  cudaEvent_t event_ = nullptr;
};

// Memory that grows when more is asked for; what was in it is lost then. Nothing may be using it.
template <cudaError_t (*Allocate)(void**, std::size_t), cudaError_t (*Free)(void*)>
class Block {
 public:
  Block() = default;
  ~Block() { Free(address_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void reserve(std::size_t num_bytes) {
    if (num_bytes <= num_bytes_) return;
    Free(address_);
    address_ = nullptr;
    num_bytes_ = 0;
    check_cuda(Allocate(&address_, num_bytes), "to get memory (use a smaller batch or free the GPU)");
    num_bytes_ = num_bytes;
  }
  std::size_t num_bytes() const { return num_bytes_; }
  template <typename T = void>
  T* as(std::size_t offset = 0) const {
    return static_cast<T*>(static_cast<void*>(static_cast<char*>(address_) + offset));
  }

 private:
  void* address_ = nullptr;
  std::size_t num_bytes_ = 0;
};

inline cudaError_t allocate_device(void** address, std::size_t num_bytes) { return cudaMalloc(address, num_bytes); }
inline cudaError_t free_device(void* address) { return cudaFree(address); }
inline cudaError_t allocate_pinned(void** address, std::size_t num_bytes) {
  return cudaHostAlloc(address, num_bytes, cudaHostAllocDefault);
}
inline cudaError_t free_pinned(void* address) { return cudaFreeHost(address); }

using DeviceBlock = Block<allocate_device, free_device>;
using PinnedBlock = Block<allocate_pinned, free_pinned>;

}  // namespace maskrcnn
