// A TensorRT engine: an execution context for each profile, on one stream and in the same memory, and CUDA graphs of
// their launches (runtime/engine/session.py, contexts.py). Used by one thread at a time.
#pragma once

#include <NvInfer.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "contract.h"
#include "cuda_objects.h"

namespace maskrcnn {

using Shape = std::vector<std::int64_t>;
using Shapes = std::map<std::string, Shape>;
using Addresses = std::map<std::string, void*>;

// The TensorRT of this process, opened once: libnvinfer is loaded, and its log kept.
class TensorRTLibrary {
 public:
  static TensorRTLibrary& instance();
  // "TensorRT 8.5.3"
  const std::string& name() const { return name_; }
  // kInvalid: TensorRT cannot read it. For any thread: one engine is read at a time.
  std::unique_ptr<nvinfer1::ICudaEngine> engine_from(const std::string& data);
  // What it logged as errors since the last call, the last ones in one line.
  std::string errors();

 private:
  TensorRTLibrary();
  class Logger;
  static Logger& logger();
  nvinfer1::IRuntime* runtime_;  // for as long as the process
  std::string name_;
  std::mutex reading_;
};

class TensorRTEngine {
 public:
  // kInvalid: TensorRT cannot read it. kFailed: too little memory.
  TensorRTEngine(const std::string& data, cudaStream_t stream, bool cuda_graphs);
  ~TensorRTEngine();

  // Without the batch, which counts as free.
  const std::vector<TensorSpec>& inputs() const { return inputs_; }
  const std::vector<TensorSpec>& outputs() const { return outputs_; }
  int least_batch() const { return least_batch_; }
  int largest_batch() const { return largest_batch_; }
  // The outputs' shapes for the largest inputs that a profile has.
  const Shapes& largest_outputs() const { return largest_outputs_; }
  const Shape& largest_images() const { return largest_images_; }

  // kInvalid: no profile has these shapes of inputs; names the range.
  void check(const Shapes& shapes) const;
  // Enqueues the network; nothing is waited for, unless the shapes change. Returns the outputs' shapes.
  const Shapes& start(const Shapes& shapes, const Addresses& addresses);

 private:
  struct Profile;
  Profile& profile_for(const Shapes& shapes);
  const Shapes& set_shapes(Profile& profile, const Shapes& shapes);
  void enqueue(Profile& profile, const Addresses& addresses);
  void launch(Profile& profile, const Addresses& addresses);
  void open_profiles();
  void read_tensors();

  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  cudaStream_t stream_;
  bool cuda_graphs_;
  DeviceBlock memory_;
  std::vector<std::unique_ptr<Profile>> profiles_;
  Profile* active_ = nullptr;
  std::vector<TensorSpec> inputs_, outputs_;
  int least_batch_ = 1, largest_batch_ = 1;
  Shapes largest_outputs_;
  Shape largest_images_;
};

}  // namespace maskrcnn
