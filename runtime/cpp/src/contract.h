// The graph's contract: the inputs and outputs that every model of ours has (runtime/contract.py).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "metadata.h"

namespace maskrcnn {

constexpr std::int64_t kFree = -1;  // a dimension of any size

struct TensorSpec {
  std::string name;
  std::string dtype;  // NumPy's name
  std::vector<std::int64_t> shape;
};

// "float32 (?, 3, ?, ?)"
std::string described(const TensorSpec& tensor);

std::vector<TensorSpec> contract_inputs(const Metadata& metadata);
std::vector<TensorSpec> contract_outputs(const Metadata& metadata);

// place: "model m.onnx". kind: "input" or "output". kInvalid: they differ.
void check_contract(const std::string& place, const std::string& kind, const std::vector<TensorSpec>& expected,
                    const std::vector<TensorSpec>& found);

}  // namespace maskrcnn
