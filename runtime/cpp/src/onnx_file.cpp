#include "onnx_file.h"

#include <set>

#include "divisors.h"
#include "errors.h"
#include "files.h"
#include "wire.h"

namespace maskrcnn {
namespace {

std::string first_text(Message message, std::uint64_t number) {
  std::string found;
  while (message.next()) {
    if (message.is(number)) found = message.text();
  }
  return found;
}

const char* dtype_name(std::uint64_t type) {
  static const std::map<std::uint64_t, const char*> kNames = {
      {1, "float32"}, {2, "uint8"}, {3, "int8"},     {5, "int16"},    {6, "int32"},
      {7, "int64"},   {9, "bool"},  {10, "float16"}, {11, "float64"}, {16, "bfloat16"}};
  const auto found = kNames.find(type);
  return found == kNames.end() ? "another type" : found->second;
}

std::int64_t dimension(Message message) {
  std::int64_t size = kFree;
  while (message.next()) {
    if (message.is_number(1)) size = static_cast<std::int64_t>(message.value());
    if (message.is(2)) size = kFree;
  }
  return size < 0 ? kFree : size;
}

void read_shape(Message message, TensorSpec& tensor) {
  while (message.next()) {
    if (message.is(1)) tensor.shape.push_back(dimension(message.message()));
  }
}

void read_type(Message message, TensorSpec& tensor) {
  tensor.dtype = "no tensor";
  while (message.next()) {
    if (!message.is(1)) continue;  // tensor_type
    Message type = message.message();
    while (type.next()) {
      if (type.is_number(1)) tensor.dtype = dtype_name(type.value());
      if (type.is(2)) read_shape(type.message(), tensor);
    }
  }
}

TensorSpec tensor_of(Message message) {
  TensorSpec tensor;
  while (message.next()) {
    if (message.is(1)) tensor.name = message.text();
    if (message.is(2)) read_type(message.message(), tensor);
  }
  return tensor;
}

// The number of nodes.
std::size_t read_graph(Message message, OnnxFile& file) {
  std::size_t num_nodes = 0;
  std::set<std::string> weights;
  std::vector<TensorSpec> inputs;
  while (message.next()) {
    if (message.is(1)) {
      ++num_nodes;
      file.has_quantized = file.has_quantized || first_text(message.message(), 4) == "QuantizeLinear";
    }
    if (message.is(5)) weights.insert(first_text(message.message(), 8));
    if (message.is(11)) inputs.push_back(tensor_of(message.message()));
    if (message.is(12)) file.outputs.push_back(tensor_of(message.message()));
  }
  for (TensorSpec& input : inputs) {
    if (weights.count(input.name) == 0) file.inputs.push_back(std::move(input));
  }
  return num_nodes;
}

// A domain and a version.
std::pair<std::string, std::int64_t> opset_of(Message message) {
  std::pair<std::string, std::int64_t> found;
  while (message.next()) {
    if (message.is(1)) found.first = message.text();
    if (message.is_number(2)) found.second = static_cast<std::int64_t>(message.value());
  }
  return found;
}

// The number of nodes.
std::size_t read_model(const std::string& data, OnnxFile& file) {
  std::size_t num_nodes = 0;
  Message message(data);
  while (message.next()) {
    if (message.is(7)) num_nodes += read_graph(message.message(), file);
    if (message.is(14)) {
      file.properties.emplace(first_text(message.message(), 1), first_text(message.message(), 2));
    }
    if (message.is(8)) file.opsets.push_back(opset_of(message.message()));
    if (message.is(25)) file.functions.push_back(first_text(message.message(), 1));
  }
  return num_nodes;
}

}  // namespace

OnnxFile read_onnx(const std::string& path) {
  const std::string place = "model " + path + ": ";
  OnnxFile file;
  std::size_t num_nodes = 0;
  std::string data;
  try {
    data = bytes_of(path, kOnnxFile);
  } catch (const Failure& failure) {
    throw Failure{failure.code, place + failure.message};
  }
  try {
    num_nodes = read_model(data, file);
  } catch (const Failure& failure) {
    invalid(place, "expected an ONNX file, found something else (", failure.message,
            "); make one with `python -m export.maskrcnn`");
  }
  if (num_nodes == 0) {
    invalid(place,
            "expected an ONNX file, found one without nodes; it may be truncated, make it again with "
            "`python -m export.maskrcnn`");
  }
  const std::string division = fatal_division(data);
  if (!division.empty()) {
    invalid(place, division, ", which ends the process; the file is damaged or was exported wrongly, make it again");
  }
  return file;
}

}  // namespace maskrcnn
