// Numbers in a command's arguments.
#pragma once

#include <charconv>
#include <string>
#include <system_error>

// Whether all of a text is a number of such a type.
template <typename Number>
bool read_number(const std::string& text, Number& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}
