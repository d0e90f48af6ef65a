#include "json_values.h"

#include <algorithm>
#include <cmath>

namespace maskrcnn {
namespace {

constexpr double kLargest = 3.4e38;  // of float32
constexpr std::size_t kMaxText = 60;
constexpr std::size_t kMaxItems = 6;

const Json kNull;

std::string shortened(const std::string& text) {
  return text.size() <= kMaxText ? text : beginning(text, kMaxText - 3) + "...";
}

std::string quoted(const std::string& text) { return "'" + text + "'"; }

std::string listed(std::initializer_list<const char*> words) {
  std::string out;
  for (const char* word : words) out += (out.empty() ? "" : ", ") + std::string(word);
  return out;
}

// Without the name of the step itself.
std::string listed_fields(std::initializer_list<const char*> names) {
  std::string out;
  for (const char* name : names) {
    if (std::string(name) != "step") out += (out.empty() ? "" : ", ") + std::string(name);
  }
  return out;
}

std::string shown_items(const Json& values, int depth);

std::string shown(const Json& value, int depth) {
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_string()) return one_line(shortened(quoted(value.get_ref<const std::string&>())));
  if (value.is_structured()) return depth > 3 ? "..." : shown_items(value, depth);
  return shortened(value.dump());
}

std::string shown_items(const Json& values, int depth) {
  std::string out;
  std::size_t count = 0;
  for (const auto& item : values.items()) {
    if (count > 0) out += ", ";
    if (++count > kMaxItems) {
      out += "...";
      break;
    }
    out += values.is_object() ? quoted(shortened(item.key())) + ": " + shown(item.value(), depth + 1)
                              : shown(item.value(), depth + 1);
  }
  return values.is_object() ? "{" + out + "}" : "[" + out + "]";
}

}  // namespace

std::string shown(const Json& value) { return shown(value, 0); }

std::string shown_tuple(const Json& values) {
  if (!values.is_array()) return shown(values);
  const std::string list = shown(values);
  return "(" + list.substr(1, list.size() - 2) + (values.size() == 1 ? ",)" : ")");
}

const char* type_of(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "NoneType";
    case Json::value_t::boolean:
      return "bool";
    case Json::value_t::string:
      return "str";
    case Json::value_t::array:
      return "list";
    case Json::value_t::object:
      return "dict";
    default:
      return value.is_number_integer() ? "int" : "float";
  }
}

Json parsed(const std::string& text) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    invalid("expected JSON, found ", quoted(one_line(text.substr(0, 30))), " (", one_line(error.what()), ")");
  }
}

bool is_number(const Json& value) { return value.is_number() && std::abs(value.get<double>()) <= kLargest; }

bool is_whole(const Json& value, std::int64_t most) {
  if (!value.is_number_integer()) return false;
  const auto number = value.get<double>();
  return number >= 1 && number <= static_cast<double>(most);
}

const std::string& choice(const std::string& name, const Json& value, std::initializer_list<const char*> choices) {
  const auto is_one = [&](const char* text) { return value.get_ref<const std::string&>() == text; };
  if (!value.is_string() || !std::any_of(choices.begin(), choices.end(), is_one)) {
    invalid(name, ": expected one of ", listed(choices), ", found ", shown(value));
  }
  return value.get_ref<const std::string&>();
}

bool boolean(const std::string& name, const Json& value) {
  if (!value.is_boolean()) invalid(name, ": expected true or false, found ", shown(value));
  return value.get<bool>();
}

std::vector<double> numbers(const std::string& name, const Json& values) {
  if (!values.is_array() || values.empty() || !std::all_of(values.begin(), values.end(), is_number)) {
    invalid(name, ": expected numbers, found ", shown(values));
  }
  return values.get<std::vector<double>>();
}

Point pair(const std::string& name, const Json& values) {
  if (!values.is_array() || values.size() != 2 || !is_number(values[0]) || !is_number(values[1])) {
    invalid(name, ": expected two numbers, found ", shown(values));
  }
  const Point found{values[0].get<double>(), values[1].get<double>()};
  if (!(found.x > 0 && found.y > 0)) invalid(name, ": expected two positive numbers, found ", shown(values));
  return found;
}

Size whole_pair(const std::string& name, const Json& values) {
  const Point found = pair(name, values);
  if (found.x != std::floor(found.x) || found.y != std::floor(found.y)) {
    invalid(name, ": expected two whole numbers, found ", shown(values));
  }
  // What is larger than any image is refused when its pixels are counted.
  const auto length = [](double value) { return static_cast<std::int64_t>(std::min(value, 2147483647.0)); };
  return {length(found.y), length(found.x)};
}

const Json& list(const std::string& name, const Json& values) {
  if (!values.is_array()) invalid(name, ": expected a list, found ", type_of(values));
  return values;
}

Fields::Fields(const Json& object, std::initializer_list<const char*> known, std::initializer_list<const char*> needed)
    : object_(object) {
  if (!object.is_object()) invalid("expected an object, found ", shown(object));
  Json unknown = Json::array();
  for (const auto& item : object.items()) {
    const auto is_it = [&](const char* name) { return item.key() == name; };
    if (!std::any_of(known.begin(), known.end(), is_it)) unknown.push_back(item.key());
  }
  if (!unknown.empty()) invalid("expected the fields ", listed_fields(known), ", found ", shown(unknown));
  std::string missing;
  for (const char* name : needed) {
    if (!object.contains(name)) missing += (missing.empty() ? "" : ", ") + std::string(name);
  }
  if (!missing.empty()) invalid("expected the fields ", missing, ", found none of them");
}

const Json& Fields::operator[](const char* name) const {
  const auto found = object_.find(name);
  return found == object_.end() ? kNull : *found;
}

bool Fields::flag(const char* name, bool otherwise) const {
  return object_.contains(name) ? boolean(name, object_.at(name)) : otherwise;
}

}  // namespace maskrcnn
