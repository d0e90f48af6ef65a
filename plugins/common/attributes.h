// An operator's attributes: named lists of int32, lists of float32, and strings. They are what an engine stores, too:
// deserialising one goes through the same checks as building it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace maskrcnn {

// A single number is a list of one, as in TensorRT's plugin fields.
using AttributeValue = std::variant<std::vector<int32_t>, std::vector<float>, std::string>;

struct Attribute {
  std::string name;
  AttributeValue value;
};

struct AttributeSpec {
  const char* name;
  AttributeValue fallback;  // its type is the attribute's type, whether it is required or not
  bool required;
};

AttributeSpec required_int(const char* name);
AttributeSpec required_float(const char* name);  // one, or a list
AttributeSpec optional_int(const char* name, int32_t fallback);
AttributeSpec optional_float(const char* name, float fallback);
AttributeSpec optional_floats(const char* name, std::vector<float> fallback);
AttributeSpec optional_string(const char* name, const char* fallback);

// Everything that is asked of these throws std::invalid_argument with what was expected, what was found, what to do.
class Attributes {
 public:
  // Checks names and types against the specs and fills in the defaults.
  Attributes(std::string op, const std::vector<AttributeSpec>& specs, const std::vector<Attribute>& given);

  int32_t integer(const char* name, int32_t at_least, int32_t at_most) const;
  bool flag(const char* name) const { return integer(name, 0, 1) != 0; }
  bool is_empty(const char* name) const;  // a list of numbers
  float number(const char* name, float at_least, float at_most) const;
  // 1 to max_count integers, each in the range.
  std::vector<int32_t> integers(const char* name, size_t max_count, int32_t at_least, int32_t at_most) const;
  std::vector<float> numbers(const char* name, size_t at_most) const;
  // Exactly `count` finite numbers.
  std::vector<float> finite_numbers(const char* name, size_t count) const;
  // The index of the attribute's value among the choices.
  int choice(const char* name, const std::vector<std::string>& choices) const;

  const std::vector<Attribute>& all() const { return all_; }

 private:
  template <typename T>
  const T& get(const char* name) const;
  void check_range(const char* name, int32_t value, int32_t at_least, int32_t at_most) const;
  [[noreturn]] void refuse(const char* name, const std::string& expected, const std::string& found) const;

  std::string op_;
  std::vector<Attribute> all_;
};

// The form in which IPluginV2 engines carry attributes: "MRCN", a format version, then each attribute's name, type,
// length and values, in the byte order of the machine, as the engine itself.
std::string bytes_from_attributes(const std::vector<Attribute>& attributes);
// Refuses another version, and anything too short or too long.
std::vector<Attribute> attributes_from_bytes(const void* bytes, size_t num_bytes);

}  // namespace maskrcnn
