#include "onnx_file.h"

#include <set>

#include "errors.h"
#include "files.h"

namespace maskrcnn {
namespace {

// A piece of a protobuf message in its wire format (https://protobuf.dev/programming-guides/encoding): of a few fields
// of ONNX, whose numbers are those of onnx.proto.
class Message {
 public:
  explicit Message(const std::string& data) : Message(data.data(), data.data() + data.size()) {}
  Message(const char* begin, const char* end) : place_(begin), end_(end) {}

  // Goes to the next field; false at the end.
  bool next() {
    if (place_ == end_) return false;
    const std::uint64_t tag = varint();
    number_ = tag >> 3;
    switch (tag & 7) {
      case 0:
        value_ = varint();
        break;
      case 1:
        skip(8);
        break;
      case 2:
        skip(varint());
        break;
      case 5:
        skip(4);
        break;
      default:
        damaged("a field of no known kind");
    }
    is_bytes_ = (tag & 7) == 2;
    if (number_ == 0) damaged("a field without a number");
    return true;
  }

  // Whether it is the field of that number and has bytes: a text, or a message.
  bool is(std::uint64_t number) const { return is_bytes_ && number_ == number; }
  bool is_number(std::uint64_t number) const { return !is_bytes_ && number_ == number; }
  std::uint64_t value() const { return value_; }
  std::string text() const { return {begin_, place_}; }
  Message message() const { return {begin_, place_}; }

 private:
  [[noreturn]] static void damaged(const char* what) { invalid(what); }

  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (place_ == end_) damaged("an end in the middle of a number");
      const auto byte = static_cast<unsigned char>(*place_++);
      value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    damaged("a number without an end");
  }

  void skip(std::uint64_t length) {
    if (length > static_cast<std::uint64_t>(end_ - place_)) damaged("an end in the middle of a field");
    begin_ = place_;
    place_ += length;
  }

  const char* place_;
  const char* end_;
  const char* begin_ = nullptr;  // of the field's bytes, which end at place_
  std::uint64_t number_ = 0;
  std::uint64_t value_ = 0;
  bool is_bytes_ = false;
};

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

// The number of nodes.
std::size_t read_model(const std::string& data, OnnxFile& file) {
  std::size_t num_nodes = 0;
  Message message(data);
  while (message.next()) {
    if (message.is(7)) num_nodes += read_graph(message.message(), file);
    if (message.is(14)) {
      file.properties.emplace(first_text(message.message(), 1), first_text(message.message(), 2));
    }
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
  return file;
}

}  // namespace maskrcnn
