// Files, read whole.
#pragma once

#include <cstdint>
#include <string>

namespace maskrcnn {

constexpr std::int64_t kSmallFile = std::int64_t{1} << 26;       // of JSON that is ours
constexpr std::int64_t kOnnxFile = (std::int64_t{1} << 31) - 1;  // a protobuf file ends there

bool is_file(const std::string& path);

// Refuses a model that is not there: kNotFound.
void check_model_file(const std::string& path);

// The bytes of a regular file. kInvalid: it is larger than `most`, or none; kFailed: it cannot be read. Without the
// place.
std::string bytes_of(const std::string& path, std::int64_t most);

// "model.onnx" -> ".onnx", in lower case.
std::string suffix_of(const std::string& path);

}  // namespace maskrcnn
