// TensorRT 8.5 without a GPU: one engine, of tests/runtime/fakes.py's size, with profiles for 1 and for 2 to 8 images.
// Its network finds in an image, whose first value is v, 1 + v % 4 objects: at (row, row) of 10 + v % 7 by 12 px, with
// masks whose first value is 31 * v + row. `stubs.h` has the rest of TensorRT's interface.
#include <NvInfer.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "cudart.h"
#include "stubs.h"

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr int kRows = 4, kHeight = 64, kWidth = 96, kCells = 28;
constexpr int kLow[] = {1, 2}, kBest[] = {1, 8}, kHigh[] = {1, 8};
constexpr std::size_t kMemory = 4096;
constexpr const char* kNames[] = {"images", "image_sizes", "num_dets", "dets", "labels", "masks"};
nvinfer1::ILogger* logger = nullptr;

Dims dims_of(const std::string& name, int batch) {
  if (name == "images") return Dims{4, {batch, 3, kHeight, kWidth}};
  if (name == "image_sizes") return Dims{2, {batch, 2}};
  if (name == "num_dets") return Dims{1, {batch}};
  if (name == "dets") return Dims{3, {batch, kRows, 5}};
  if (name == "labels") return Dims{2, {batch, kRows}};
  return Dims{4, {batch, kRows, kCells, kCells}};
}

using Addresses = std::map<std::string, void*>;

template <typename T>
T* at(const Addresses& addresses, const char* name) {
  return static_cast<T*>(addresses.at(name));
}

void compute(const Addresses& addresses, int batch, void* memory) {
  std::memset(memory, 1, kMemory);
  for (int i = 0; i < batch; ++i) {
    const int value = static_cast<int>(at<float>(addresses, "images")[i * 3 * kHeight * kWidth]);
    const float* size = at<float>(addresses, "image_sizes") + 2 * i;
    const int count = size[0] > 0 && size[1] > 0 ? 1 + value % kRows : 0;
    at<int>(addresses, "num_dets")[i] = count;
    for (int row = 0; row < kRows; ++row) {
      const auto x = static_cast<float>(row), edge = static_cast<float>(10 + value % 7);
      const float det[] = {x, x, x + edge, x + 12, 0.9f - 0.1f * x};
      std::copy_n(det, 5, at<float>(addresses, "dets") + 5 * (i * kRows + row));
      at<int>(addresses, "labels")[i * kRows + row] = row % 3;
      float* mask = at<float>(addresses, "masks") + (i * kRows + row) * kCells * kCells;
      std::fill_n(mask, kCells * kCells, 0.f);
      *mask = static_cast<float>(31 * value + row);
    }
  }
}

class Context : public StubExecutionContext {
 public:
  void setDeviceMemory(void* memory) noexcept override { memory_ = memory; }
  bool setOptimizationProfileAsync(int index, cudaStream_t) noexcept override {
    return profile_ = index, index == 0 || index == 1;
  }
  bool setInputShape(const char* name, const Dims& dims) noexcept override {
    const Dims expected = dims_of(name, dims.d[0]);
    const bool is_right = dims.nbDims == expected.nbDims && std::equal(dims.d, dims.d + dims.nbDims, expected.d) &&
                          dims.d[0] >= kLow[profile_] && dims.d[0] <= kHigh[profile_];
    if (is_right) batches_[name] = dims.d[0];
    return is_right;
  }
  Dims getTensorShape(const char* name) const noexcept override { return dims_of(name, batches_.at("images")); }
  bool setTensorAddress(const char* name, void* address) noexcept override {
    return addresses_[name] = address, address != nullptr;
  }
  bool enqueueV3(cudaStream_t stream) noexcept override {
    const int batch = batches_.at("images");
    if (memory_ == nullptr || batches_.at("image_sizes") != batch || addresses_.size() != std::size(kNames)) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, "expected memory, shapes and addresses");
      return false;
    }
    fake_cuda_enqueue(stream, [addresses = addresses_, batch, memory = memory_] { compute(addresses, batch, memory); });
    return true;
  }

 private:
  int profile_ = 0;
  void* memory_ = nullptr;
  std::map<std::string, int> batches_;
  Addresses addresses_;
};

class FakeContext : public nvinfer1::IExecutionContext {
 public:
  FakeContext() { mImpl = &context_; }

 private:
  Context context_;
};

class Engine : public StubCudaEngine {
 public:
  int32_t getNbIOTensors() const noexcept override { return std::size(kNames); }
  const char* getIOTensorName(int32_t index) const noexcept override { return kNames[index]; }
  Dims getTensorShape(const char* name) const noexcept override { return dims_of(name, -1); }
  DataType getTensorDataType(const char* name) const noexcept override {
    const std::string text = name;
    return text == "num_dets" || text == "labels" ? DataType::kINT32 : DataType::kFLOAT;
  }
  nvinfer1::TensorIOMode getTensorIOMode(const char* name) const noexcept override {
    const bool is_input = std::string(name).rfind("image", 0) == 0;
    return is_input ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
  }
  int32_t getNbOptimizationProfiles() const noexcept override { return 2; }
  Dims getProfileShape(const char* name, int32_t index, nvinfer1::OptProfileSelector which) const noexcept override {
    const int* batches = which == nvinfer1::OptProfileSelector::kMIN   ? kLow
                         : which == nvinfer1::OptProfileSelector::kOPT ? kBest
                                                                       : kHigh;
    return dims_of(name, batches[index]);
  }
  size_t getDeviceMemorySize() const noexcept override { return kMemory; }
  nvinfer1::IExecutionContext* createExecutionContextWithoutDeviceMemory() noexcept override { return new FakeContext; }
};

class FakeEngine : public nvinfer1::ICudaEngine {
 public:
  FakeEngine() { mImpl = &engine_; }

 private:
  Engine engine_;
};

class Runtime : public StubRuntime {
 public:
  nvinfer1::ICudaEngine* deserializeCudaEngine(const void* data, std::size_t size,
                                               nvinfer1::IPluginFactory*) noexcept override {
    if (std::string(static_cast<const char*>(data), size) == "fake engine") return new FakeEngine;
    logger->log(nvinfer1::ILogger::Severity::kERROR, "magic tag does not match");
    return nullptr;
  }
};

class FakeRuntime : public nvinfer1::IRuntime {
 public:
  FakeRuntime() { mImpl = &runtime_; }

 private:
  Runtime runtime_;
};

}  // namespace

extern "C" {

int32_t getInferLibVersion() { return 8503; }

void* createInferRuntime_INTERNAL(void* log, int32_t version) {
  if (version / 1000 != 8) return nullptr;
  logger = static_cast<nvinfer1::ILogger*>(log);
  return static_cast<nvinfer1::IRuntime*>(new FakeRuntime);
}

}  // extern "C"
