#include "sidecar.h"

#include <openssl/evp.h>

#include <array>
#include <memory>

#include "errors.h"
#include "files.h"
#include "json_values.h"

namespace maskrcnn {
namespace {

constexpr int kFormat = 1;
constexpr std::size_t kShown = 12;  // characters of a SHA-256 in a message
constexpr std::int64_t kEngineFile = std::int64_t{1} << 40;
constexpr const char* kAgain = "build it again with `python -m runtime.build`, or use --rebuild auto";

struct Sidecar {
  std::string engine_sha256, onnx, num_bytes;
  Provenance provenance;
  std::optional<Metadata> metadata;
};

std::string python_type(Json::value_t type) {
  switch (type) {
    case Json::value_t::string:
      return "str";
    case Json::value_t::object:
      return "dict";
    default:
      return "another type";
  }
}

// A value of a type; of an optional field, null where there is none.
const Json& field(const Json& data, const char* name, Json::value_t type, bool optional = false) {
  static const Json kNull;
  const auto place = data.find(name);
  const Json& value = place == data.end() ? kNull : *place;
  if (value.type() != type && !(optional && value.is_null())) {
    invalid(name, ": expected ", python_type(type), ", found ", place == data.end() ? "none" : shown(value));
  }
  return value;
}

std::string text(const Json& data, const char* name) {
  return field(data, name, Json::value_t::string).get<std::string>();
}

Provenance provenance_from(const Json& data) {
  Provenance found;
  found.onnx_sha256 = text(data, "onnx_sha256");
  const Json& plugins = field(data, "plugins_sha256", Json::value_t::string, true);
  if (!plugins.is_null()) found.plugins_sha256 = plugins.get<std::string>();
  found.tensorrt = text(data, "tensorrt");
  found.gpu = text(data, "gpu");
  found.compute_capability = text(data, "compute_capability");
  return found;
}

Sidecar sidecar_from(const Json& data) {
  const Json format = data.is_object() ? data.value("format", Json()) : Json();
  if (format != kFormat || format.is_boolean()) invalid("format ", shown(format));
  Sidecar sidecar;
  const Json& metadata = field(data, "metadata", Json::value_t::object, true);
  const Json& provenance = field(data, "provenance", Json::value_t::object);
  sidecar.engine_sha256 = text(data, "engine_sha256");
  sidecar.onnx = text(data, "onnx");
  sidecar.provenance = provenance_from(provenance);
  field(data, "config", Json::value_t::object);
  field(data, "plan_sha256", Json::value_t::string, true);
  const Json& build = field(data, "build", Json::value_t::object);
  const auto num_bytes = build.find("bytes");
  sidecar.num_bytes = num_bytes == build.end() ? "?" : shown(*num_bytes);
  if (!metadata.is_null()) sidecar.metadata = metadata_from_json(metadata.dump(), "");
  return sidecar;
}

std::string name_of(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

Sidecar load_sidecar(const std::string& engine) {
  const std::string path = engine + ".json";
  if (!is_file(path)) {
    not_found("engine ", engine, ": expected ", name_of(path),
              " beside it, found nothing; it holds what the engine was built from: build again with "
              "`python -m runtime.build`");
  }
  return placed(
      path + ": expected a sidecar of format 1, found something else (",
      [&] { return sidecar_from(parsed(bytes_of(path, kSmallFile))); },
      "); build the engine again with `python -m runtime.build`");
}

// What of `found` is not as expected, in words; begins with "; " where something was before.
class Differences {
 public:
  explicit Differences(std::string reasons) : reasons_(std::move(reasons)) {}

  void compare(const char* what, const std::string& expected, const std::string& found) {
    if (expected == found) return;
    if (!reasons_.empty()) reasons_ += "; ";
    reasons_ += std::string(what) + ": expected " + expected + ", found " + found;
  }
  const std::string& reasons() const { return reasons_; }

 private:
  std::string reasons_;
};

std::string damage(const std::string& engine, const std::string& data, const Sidecar& sidecar) {
  const std::string found = sha256_of(data);
  if (found == sidecar.engine_sha256) return "";
  return joined("engine file: expected ", sidecar.num_bytes, " bytes of SHA-256 ",
                sidecar.engine_sha256.substr(0, kShown), ", found ", data.size(), " bytes of ", found.substr(0, kShown),
                ": truncated, or not the file that ", name_of(engine), ".json describes");
}

// Relative to the engine's folder.
std::string beside(const std::string& engine, const std::string& name) {
  if (!name.empty() && name[0] == '/') return name;
  const std::size_t slash = engine.find_last_of('/');
  return slash == std::string::npos ? name : engine.substr(0, slash + 1) + name;
}

}  // namespace

std::string sha256_of(const std::string& bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int length = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), &length, EVP_sha256(), nullptr) != 1) {
    failed("SHA-256: expected libcrypto to compute it, found an error");
  }
  std::string out;
  for (unsigned int i = 0; i < length; ++i) {
    out += "0123456789abcdef"[digest[i] >> 4];
    out += "0123456789abcdef"[digest[i] & 0xf];
  }
  return out;
}

std::string sha256_of_file(const std::string& path) {
  return placed(path + ": ", [&] { return sha256_of(bytes_of(path, kEngineFile)); });
}

CheckedEngine checked_engine(const std::string& path, Provenance machine) {
  if (!is_file(path)) {
    not_found("engine ", path, ": expected a file, found nothing; build it with `python -m runtime.build model.onnx`");
  }
  Sidecar sidecar = load_sidecar(path);
  const std::string onnx = beside(path, sidecar.onnx);
  machine.onnx_sha256 = is_file(onnx) ? sha256_of_file(onnx) : sidecar.provenance.onnx_sha256;
  std::string data = placed("engine " + path + ": ", [&] { return bytes_of(path, kEngineFile); });
  const Provenance& found = sidecar.provenance;
  // libnvinfer does not tell the fourth number of its release.
  if (found.tensorrt.rfind(machine.tensorrt + ".", 0) == 0) machine.tensorrt = found.tensorrt;
  Differences differences(damage(path, data, sidecar));
  differences.compare("ONNX (SHA-256)", machine.onnx_sha256, found.onnx_sha256);
  differences.compare("plugin library (SHA-256)", machine.plugins_sha256.value_or("None"),
                      found.plugins_sha256.value_or("None"));
  differences.compare("TensorRT", machine.tensorrt, found.tensorrt);
  differences.compare("GPU", machine.gpu, found.gpu);
  differences.compare("compute capability", machine.compute_capability, found.compute_capability);
  if (!differences.reasons().empty()) invalid("engine ", path, ": ", differences.reasons(), "; ", kAgain);
  if (!sidecar.metadata) {
    invalid("engine ", path,
            ": expected one of a model of ours, found one of an ONNX without our metadata; export it with "
            "`python -m export.maskrcnn`");
  }
  return {std::move(data), std::move(*sidecar.metadata)};
}

}  // namespace maskrcnn
