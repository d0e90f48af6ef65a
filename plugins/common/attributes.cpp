#include "plugins/common/attributes.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace maskrcnn {
namespace {

constexpr char kMagic[4] = {'M', 'R', 'C', 'N'};
// With the attributes' form, or with how much scratch an operator takes: an engine gives it what it took when it was built.
constexpr uint32_t kFormatVersion = 2;
// No attribute comes near: more is a corrupt engine, and must not become an allocation.
constexpr uint32_t kMaxLength = 4096;

const char* type_name(const AttributeValue& value) {
  constexpr const char* kNames[] = {"int32", "float32", "string"};
  return kNames[value.index()];
}

std::string text(float value) {
  char digits[32];
  std::snprintf(digits, sizeof(digits), "%g", static_cast<double>(value));
  return digits;
}

std::string joined_names(const std::vector<AttributeSpec>& specs) {
  std::string text;
  for (const AttributeSpec& spec : specs) text += (text.empty() ? "" : ", ") + std::string(spec.name);
  return text;
}

template <typename T>
void append(std::string& bytes, const T* values, size_t count) {
  bytes.append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

void append_length(std::string& bytes, size_t length) {
  const auto value = static_cast<uint32_t>(length);
  append(bytes, &value, 1);
}

class Reader {
 public:
  Reader(const void* bytes, size_t num_bytes) : next_(static_cast<const char*>(bytes)), left_(num_bytes) {}

  bool done() const { return left_ == 0; }

  template <typename T>
  void read(T* values, size_t count) {
    const size_t wanted = count * sizeof(T);
    if (wanted > left_) fail(std::to_string(wanted) + " more bytes", std::to_string(left_));
    if (wanted > 0) std::memcpy(values, next_, wanted);
    next_ += wanted;
    left_ -= wanted;
  }

  size_t read_length() {
    uint32_t length = 0;
    read(&length, 1);
    if (length > kMaxLength) fail("a length up to " + std::to_string(kMaxLength), std::to_string(length));
    return length;
  }

  template <typename List>
  List read_list() {
    List list(read_length(), typename List::value_type{});
    read(list.data(), list.size());
    return list;
  }

  [[noreturn]] static void fail(const std::string& expected, const std::string& found) {
    throw std::invalid_argument("serialised plugin: expected " + expected + ", found " + found +
                                ". The engine is damaged or was built with another plugin library: rebuild it");
  }

 private:
  const char* next_;
  size_t left_;
};

AttributeValue read_value(Reader& reader) {
  uint32_t type = 0;
  reader.read(&type, 1);
  switch (type) {
    case 0:
      return reader.read_list<std::vector<int32_t>>();
    case 1:
      return reader.read_list<std::vector<float>>();
    case 2:
      return reader.read_list<std::string>();
    default:
      Reader::fail("an attribute type of 0, 1 or 2", std::to_string(type));
  }
}

}  // namespace

AttributeSpec required_int(const char* name) { return {name, std::vector<int32_t>{}, true}; }
AttributeSpec required_float(const char* name) { return {name, std::vector<float>{}, true}; }
AttributeSpec optional_int(const char* name, int32_t fallback) { return {name, std::vector<int32_t>{fallback}, false}; }
AttributeSpec optional_float(const char* name, float fallback) { return {name, std::vector<float>{fallback}, false}; }
AttributeSpec optional_floats(const char* name, std::vector<float> fallback) {
  return {name, std::move(fallback), false};
}
AttributeSpec optional_string(const char* name, const char* fallback) { return {name, std::string(fallback), false}; }

Attributes::Attributes(std::string op, const std::vector<AttributeSpec>& specs, const std::vector<Attribute>& given)
    : op_(std::move(op)) {
  const auto spec_of = [&](const std::string& name) {
    return std::find_if(specs.begin(), specs.end(), [&](const AttributeSpec& spec) { return spec.name == name; });
  };
  for (const Attribute& attribute : given) {
    const auto spec = spec_of(attribute.name);
    if (spec == specs.end()) {
      refuse(attribute.name.c_str(), specs.empty() ? "no attributes" : "one of: " + joined_names(specs),
             "an unknown name");
    }
    if (spec->fallback.index() != attribute.value.index()) {
      refuse(spec->name, type_name(spec->fallback), type_name(attribute.value));
    }
  }
  for (const AttributeSpec& spec : specs) {
    const auto found =
        std::find_if(given.rbegin(), given.rend(), [&](const Attribute& a) { return a.name == spec.name; });
    if (found == given.rend() && spec.required) refuse(spec.name, "it to be set", "nothing");
    all_.push_back({spec.name, found == given.rend() ? spec.fallback : found->value});
  }
}

template <typename T>
const T& Attributes::get(const char* name) const {
  for (const Attribute& attribute : all_) {
    if (attribute.name == name) return std::get<T>(attribute.value);
  }
  throw std::logic_error(op_ + ": no attribute " + name + " in the operator's own list");
}

void Attributes::refuse(const char* name, const std::string& expected, const std::string& found) const {
  throw std::invalid_argument(op_ + ": attribute " + name + ": expected " + expected + ", found " + found +
                              ". Correct the ONNX node; plugins/README.md lists the operator's attributes");
}

void Attributes::check_range(const char* name, int32_t value, int32_t at_least, int32_t at_most) const {
  if (value >= at_least && value <= at_most) return;
  refuse(name, "an integer from " + std::to_string(at_least) + " to " + std::to_string(at_most), std::to_string(value));
}

int32_t Attributes::integer(const char* name, int32_t at_least, int32_t at_most) const {
  const auto& values = get<std::vector<int32_t>>(name);
  if (values.size() != 1) refuse(name, "one integer", std::to_string(values.size()));
  check_range(name, values[0], at_least, at_most);
  return values[0];
}

std::vector<int32_t> Attributes::integers(const char* name, size_t max_count, int32_t at_least, int32_t at_most) const {
  const auto& values = get<std::vector<int32_t>>(name);
  if (values.empty() || values.size() > max_count) {
    refuse(name, "1 to " + std::to_string(max_count) + " integers", std::to_string(values.size()));
  }
  for (const int32_t value : values) check_range(name, value, at_least, at_most);
  return values;
}

float Attributes::number(const char* name, float at_least, float at_most) const {
  const auto& values = get<std::vector<float>>(name);
  if (values.size() != 1) refuse(name, "one number", std::to_string(values.size()));
  if (!(values[0] >= at_least && values[0] <= at_most)) {
    refuse(name, "a number from " + text(at_least) + " to " + text(at_most), text(values[0]));
  }
  return values[0];
}

bool Attributes::is_empty(const char* name) const { return get<std::vector<float>>(name).empty(); }

std::vector<float> Attributes::numbers(const char* name, size_t at_most) const {
  const auto& values = get<std::vector<float>>(name);
  if (values.empty() || values.size() > at_most) {
    refuse(name, "1 to " + std::to_string(at_most) + " numbers", std::to_string(values.size()));
  }
  for (const float value : values) {
    if (!(value > 0.f && std::isfinite(value))) refuse(name, "finite numbers above 0", text(value));
  }
  return values;
}

std::vector<float> Attributes::finite_numbers(const char* name, size_t count) const {
  const auto& values = get<std::vector<float>>(name);
  if (values.size() != count) refuse(name, std::to_string(count) + " numbers", std::to_string(values.size()));
  for (const float value : values) {
    if (!std::isfinite(value)) refuse(name, "finite numbers", text(value));
  }
  return values;
}

int Attributes::choice(const char* name, const std::vector<std::string>& choices) const {
  const auto& value = get<std::string>(name);
  std::string names;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (choices[i] == value) return static_cast<int>(i);
    names += (names.empty() ? "" : ", ") + choices[i];
  }
  refuse(name, "one of: " + names, "'" + value + "'");
}

std::string bytes_from_attributes(const std::vector<Attribute>& attributes) {
  std::string bytes(kMagic, sizeof(kMagic));
  append(bytes, &kFormatVersion, 1);
  for (const Attribute& attribute : attributes) {
    append_length(bytes, attribute.name.size());
    bytes += attribute.name;
    append_length(bytes, attribute.value.index());
    std::visit(
        [&](const auto& values) {
          append_length(bytes, values.size());
          append(bytes, values.data(), values.size());
        },
        attribute.value);
  }
  return bytes;
}

std::vector<Attribute> attributes_from_bytes(const void* bytes, size_t num_bytes) {
  Reader reader(bytes, num_bytes);
  char magic[sizeof(kMagic)] = {};
  reader.read(magic, sizeof(kMagic));
  if (std::memcmp(magic, kMagic, sizeof(kMagic)) != 0) Reader::fail("the mark MRCN", "something else");
  uint32_t version = 0;
  reader.read(&version, 1);
  if (version != kFormatVersion) {
    Reader::fail("format version " + std::to_string(kFormatVersion), std::to_string(version));
  }
  std::vector<Attribute> attributes;
  while (!reader.done()) {
    auto name = reader.read_list<std::string>();
    attributes.push_back({std::move(name), read_value(reader)});
  }
  return attributes;
}

}  // namespace maskrcnn
