// What is to be known of an ONNX file before a runtime reads it: its metadata, inputs and outputs, and what runtimes do
// not survive: local functions (OpenVINO), operator sets that do not exist (OpenVINO), divisions by 0.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "contract.h"

namespace maskrcnn {

struct OnnxFile {
  std::map<std::string, std::string> properties;             // metadata_props
  std::vector<TensorSpec> inputs;                            // without what has a value in the file
  std::vector<TensorSpec> outputs;                           // in the file's order
  std::vector<std::string> functions;                        // names of the local ones
  std::vector<std::pair<std::string, std::int64_t>> opsets;  // domain and version of each operator set
  bool has_quantized = false;                                // QuantizeLinear among its nodes
};

// kInvalid: it is no ONNX, or has a division that ends the process; names the file.
OnnxFile read_onnx(const std::string& path);

}  // namespace maskrcnn
