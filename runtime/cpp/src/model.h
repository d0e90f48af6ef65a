// A model that is open: what a backend implements.
#pragma once

#include <memory>
#include <vector>

#include "metadata.h"

namespace maskrcnn {

// A batch under way. Its destructor waits, where memory that is the caller's or its own is still used.
class Job {
 public:
  virtual ~Job() = default;
  // Once.
  virtual std::vector<Detections> wait() = 0;
};

class Model {
 public:
  explicit Model(std::shared_ptr<const Metadata> metadata) : metadata_(std::move(metadata)) {}
  virtual ~Model() = default;
  const Metadata& metadata() const { return *metadata_; }

  // Whether it takes images on a device, and a stream.
  virtual bool is_on_device() const { return false; }
  // How many batches to have under way where a call has several.
  virtual std::size_t num_slots() const = 0;
  // Images that were checked, at least one and not more than largest_batch. For any thread.
  virtual std::unique_ptr<Job> submit(const Image* images, std::size_t num_images, const RunOptions& options) const = 0;

  const std::shared_ptr<const Metadata>& shared_metadata() const { return metadata_; }

 private:
  std::shared_ptr<const Metadata> metadata_;
};

// What opens files of some suffixes.
struct BackendEntry {
  const char* name;
  bool (*reads)(const std::string& suffix);
  std::shared_ptr<const Model> (*open)(const std::string& path, const Options& options);
};

// Those that are built in.
#if defined(MASKRCNN_WITH_OPENVINO)
std::shared_ptr<const Model> open_openvino(const std::string& path, const Options& options);
#endif
#if defined(MASKRCNN_WITH_ONNXRUNTIME)
std::shared_ptr<const Model> open_onnxruntime(const std::string& path, const Options& options);
#endif
#if defined(MASKRCNN_WITH_TENSORRT)
std::shared_ptr<const Model> open_tensorrt(const std::string& path, const Options& options);
#endif

}  // namespace maskrcnn
