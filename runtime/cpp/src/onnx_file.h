// What is to be known of an ONNX file before a runtime reads it: its metadata, inputs and outputs, and whether it has
// local functions, which OpenVINO does not survive.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "contract.h"

namespace maskrcnn {

struct OnnxFile {
  std::map<std::string, std::string> properties;  // metadata_props
  std::vector<TensorSpec> inputs;                 // without what has a value in the file
  std::vector<TensorSpec> outputs;                // in the file's order
  std::vector<std::string> functions;             // names of the local ones
  bool has_quantized = false;                     // QuantizeLinear among its nodes
};

// kInvalid: it is no ONNX; names the file.
OnnxFile read_onnx(const std::string& path);

}  // namespace maskrcnn
