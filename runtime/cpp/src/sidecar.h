// An engine's file and model.engine.json beside it: what it was built from, and whether that is still so
// (runtime/engine/sidecar.py, runtime/engine/files.py). Knows neither CUDA nor TensorRT.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "metadata.h"

namespace maskrcnn {

// What an engine depends on besides its configuration.
struct Provenance {
  std::string onnx_sha256;
  std::optional<std::string> plugins_sha256;  // none: built without the plugin library
  std::string tensorrt;                       // "TensorRT 8.5.3.1"; of a machine "TensorRT 8.5.3" will do
  std::string gpu;
  std::string compute_capability;  // "9.0"
};

struct CheckedEngine {
  std::string data;  // of the file
  Metadata metadata;
};

// As hexadecimal text.
std::string sha256_of(const std::string& bytes);
std::string sha256_of_file(const std::string& path);

// An engine that this machine can run. machine: what one that is built here depends on; its ONNX is looked for.
// kNotFound: no engine or no sidecar. kInvalid: built elsewhere or from other things than lie here now, or damaged; the
// message names every field.
CheckedEngine checked_engine(const std::string& path, Provenance machine);

}  // namespace maskrcnn
