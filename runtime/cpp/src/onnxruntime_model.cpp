// ONNX Runtime on a CPU: runtime/backends/onnxruntime.py in C++, with the same defaults. By its C interface, which the
// header for C++ wraps: it is the same from release to release, and throws nothing.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <future>

#include "errors.h"
#include "model.h"
#include "onnx_model.h"

namespace maskrcnn {
namespace {

const char* onnxruntime_version() { return OrtGetApiBase()->GetVersionString(); }

const OrtApi& api() {
  static const OrtApi* const found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (found == nullptr) {
    failed("onnxruntime: expected release 1.", ORT_API_VERSION,
           " or later, whose headers this library was built with, "
           "found ",
           onnxruntime_version(), "; put a newer one in its place, or build with older headers");
  }
  return *found;
}

// What ONNX Runtime says is wrong.
struct Refusal {
  std::string text;
};

void check(OrtStatus* status) {
  if (status == nullptr) return;
  Refusal refusal{one_line(api().GetErrorMessage(status))};
  api().ReleaseStatus(status);
  throw refusal;
}

struct Release {
  void operator()(OrtEnv* it) const { api().ReleaseEnv(it); }
  void operator()(OrtSessionOptions* it) const { api().ReleaseSessionOptions(it); }
  void operator()(OrtSession* it) const { api().ReleaseSession(it); }
  void operator()(OrtMemoryInfo* it) const { api().ReleaseMemoryInfo(it); }
  void operator()(OrtValue* it) const { api().ReleaseValue(it); }
  void operator()(OrtTensorTypeAndShapeInfo* it) const { api().ReleaseTensorTypeAndShapeInfo(it); }
};

template <typename T>
using Owned = std::unique_ptr<T, Release>;

// Calls what writes an object through its last argument.
template <typename T, typename Make>
Owned<T> made(const Make& make) {
  T* out = nullptr;
  check(make(&out));
  return Owned<T>(out);
}

ONNXTensorElementDataType type_of(const std::string& dtype) {
  if (dtype == "float32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if (dtype == "int32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
}

// A batch, and what it reads.
struct Batch {
  Geometry geometry;
  float min_score;
  std::vector<float> images, image_sizes;
};

class OnnxRuntimeModel : public Model, public std::enable_shared_from_this<OnnxRuntimeModel> {
 public:
  OnnxRuntimeModel(const std::string& path, const Options& options, const OnnxFile& file, Metadata metadata);

  std::size_t num_slots() const override { return 2; }
  std::unique_ptr<Job> submit(const Image* images, std::size_t num_images, const RunOptions& options) const override;

 private:
  std::vector<Detections> run(Batch& batch) const;
  std::vector<Owned<OrtValue>> outputs(Batch& batch) const;
  Owned<OrtValue> tensor(std::vector<float>& values, const std::vector<std::int64_t>& shape) const;

  std::vector<float> tables_;
  std::vector<std::string> names_;  // of the outputs, in the file's order
  Owned<OrtEnv> env_;
  Owned<OrtMemoryInfo> memory_;
  Owned<OrtSession> session_;
};

class OnnxRuntimeJob : public Job {
 public:
  explicit OnnxRuntimeJob(std::future<std::vector<Detections>> found) : found_(std::move(found)) {}
  // The destructor of what std::async returned waits.
  std::vector<Detections> wait() override { return found_.get(); }

 private:
  std::future<std::vector<Detections>> found_;
};

OnnxRuntimeModel::OnnxRuntimeModel(const std::string& path, const Options& options, const OnnxFile& file,
                                   Metadata metadata)
    : Model(std::make_shared<const Metadata>(std::move(metadata))), tables_(normalisation_tables(this->metadata())) {
  for (const TensorSpec& output : file.outputs) names_.push_back(output.name);
  try {
    env_ = made<OrtEnv>([](auto out) { return api().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "maskrcnn", out); });
    memory_ = made<OrtMemoryInfo>(
        [](auto out) { return api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, out); });
    const auto given = made<OrtSessionOptions>([](auto out) { return api().CreateSessionOptions(out); });
    if (options.threads > 0) check(api().SetIntraOpNumThreads(given.get(), options.threads));
    session_ =
        made<OrtSession>([&](auto out) { return api().CreateSession(env_.get(), path.c_str(), given.get(), out); });
  } catch (const Refusal& refusal) {
    invalid("model ", path, ": onnxruntime ", onnxruntime_version(), " cannot load it: ", refusal.text,
            "; export it again with `python -m export.maskrcnn`, or use a newer onnxruntime");
  }
}

std::unique_ptr<Job> OnnxRuntimeModel::submit(const Image* images, std::size_t num_images,
                                              const RunOptions& options) const {
  auto batch = std::make_unique<Batch>();
  batch->geometry = geometry_of(images, num_images, metadata());
  batch->min_score = options.min_score;
  fill_inputs(images, batch->geometry, metadata(), tables_, batch->images, batch->image_sizes);
  return std::make_unique<OnnxRuntimeJob>(std::async(
      std::launch::async, [model = shared_from_this(), batch = std::move(batch)] { return model->run(*batch); }));
}

Owned<OrtValue> OnnxRuntimeModel::tensor(std::vector<float>& values, const std::vector<std::int64_t>& shape) const {
  return made<OrtValue>([&](auto out) {
    return api().CreateTensorWithDataAsOrtValue(memory_.get(), values.data(), values.size() * sizeof(float),
                                                shape.data(), shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, out);
  });
}

std::vector<Owned<OrtValue>> OnnxRuntimeModel::outputs(Batch& batch) const {
  const auto size = static_cast<std::int64_t>(batch.geometry.originals.size());
  const Size& padded = batch.geometry.padded;
  const auto images = tensor(batch.images, {size, metadata().info.channels, padded.height, padded.width});
  const auto sizes = tensor(batch.image_sizes, {size, 2});
  const char* const input_names[] = {"images", "image_sizes"};
  const OrtValue* const inputs[] = {images.get(), sizes.get()};
  std::vector<const char*> names;
  for (const std::string& name : names_) names.push_back(name.c_str());
  std::vector<OrtValue*> found(names.size(), nullptr);
  check(api().Run(session_.get(), nullptr, input_names, inputs, 2, names.data(), names.size(), found.data()));
  std::vector<Owned<OrtValue>> owned;
  for (OrtValue* value : found) owned.emplace_back(value);
  return owned;
}

// Returns a tensor's data, and writes its shape.
const void* data_of(OrtValue* value, const std::string& name, const char* dtype, std::vector<std::int64_t>& shape) {
  const auto info = made<OrtTensorTypeAndShapeInfo>([&](auto out) { return api().GetTensorTypeAndShape(value, out); });
  std::size_t rank = 0;
  ONNXTensorElementDataType type{};
  check(api().GetDimensionsCount(info.get(), &rank));
  check(api().GetTensorElementType(info.get(), &type));
  if (type != type_of(dtype)) {
    failed("model output ", name, ": expected ", dtype, ", found ONNX's type ", static_cast<int>(type));
  }
  shape.resize(rank);
  check(api().GetDimensions(info.get(), shape.data(), rank));
  void* data = nullptr;
  check(api().GetTensorMutableData(value, &data));
  return data;
}

std::vector<Detections> OnnxRuntimeModel::run(Batch& batch) const {
  try {
    const auto values = outputs(batch);
    const Outputs found = outputs_of(
        metadata(), batch.geometry, [&](const std::string& name, const char* dtype, std::vector<std::int64_t>& shape) {
          const auto place = std::find(names_.begin(), names_.end(), name) - names_.begin();
          return data_of(values[static_cast<std::size_t>(place)].get(), name, dtype, shape);
        });
    return detections_from(found, batch.geometry, shared_metadata(), batch.min_score);
  } catch (const Refusal& refusal) {
    failed("onnxruntime ", onnxruntime_version(), " failed on ", batch.geometry.originals.size(), " images of ",
           batch.geometry.padded.height, "x", batch.geometry.padded.width, " px: ", refusal.text,
           "; if memory ran out, use a smaller batch");
  }
}

}  // namespace

std::shared_ptr<const Model> open_onnxruntime(const std::string& path, const Options& options) {
  check_range("threads", options.threads, 0, kMaxThreads);
  auto [file, metadata] = read_model(path);
  metadata.info.backend = joined("onnxruntime ", onnxruntime_version());
  return std::make_shared<const OnnxRuntimeModel>(path, options, file, std::move(metadata));
}

}  // namespace maskrcnn
