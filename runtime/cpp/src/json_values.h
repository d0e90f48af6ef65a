// Values of JSON, checked, and in the words of a message. The one place that knows the JSON library.
#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "errors.h"
#include "steps.h"

namespace maskrcnn {

using Json = nlohmann::json;

// A value in one short line, as Python's repr has it.
std::string shown(const Json& value);
// The same of a list that Python keeps as a tuple: "(1, 2)".
std::string shown_tuple(const Json& values);
// The name of the type that Python gives it.
const char* type_of(const Json& value);

// The value of a document. kInvalid: it is none; says what was found, without the place.
Json parsed(const std::string& text);

// A finite number that float32 holds.
bool is_number(const Json& value);
bool is_whole(const Json& value, std::int64_t most);

// The checks of runtime/values.py; each throws kInvalid with the field's name.
const std::string& choice(const std::string& name, const Json& value, std::initializer_list<const char*> choices);
bool boolean(const std::string& name, const Json& value);
std::vector<double> numbers(const std::string& name, const Json& values);
Point pair(const std::string& name, const Json& values);
// (width, height) as a size.
Size whole_pair(const std::string& name, const Json& values);
// The list that it is, of whatever values.
const Json& list(const std::string& name, const Json& values);

// An object whose fields are known.
class Fields {
 public:
  // Throws kInvalid where there are others, or one of `needed` is missing.
  Fields(const Json& object, std::initializer_list<const char*> known, std::initializer_list<const char*> needed);

  // The field, or null.
  const Json& operator[](const char* name) const;
  bool has(const char* name) const { return !(*this)[name].is_null(); }
  bool flag(const char* name, bool otherwise) const;

 private:
  const Json& object_;
};

// Runs `read`; what it throws as kInvalid gets `before` in front and `after` behind.
template <typename Read>
auto placed(const std::string& before, const Read& read, const std::string& after = "") -> decltype(read()) {
  try {
    return read();
  } catch (const Failure& failure) {
    throw Failure{failure.code, before + failure.message + after};
  }
}

}  // namespace maskrcnn
