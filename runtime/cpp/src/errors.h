// Errors inside the library: thrown as Failure, and made a Result's Error at the boundary. Nothing else crosses it.
#pragma once

#include <exception>
#include <locale>
#include <new>
#include <sstream>
#include <string>
#include <utility>

#include "maskrcnn/detector.h"

namespace maskrcnn {

struct Failure {
  ErrorCode code;
  std::string message;
};

// In Python's words, whatever locale the process has chosen: 1048576, not 1.048.576.
template <typename... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out.exceptions(std::ios_base::badbit);  // without memory it would end in the middle
  (out << ... << parts);
  return out.str();
}

template <typename... Parts>
[[noreturn]] void not_found(const Parts&... parts) {
  throw Failure{ErrorCode::kNotFound, joined(parts...)};
}

template <typename... Parts>
[[noreturn]] void invalid(const Parts&... parts) {
  throw Failure{ErrorCode::kInvalid, joined(parts...)};
}

template <typename... Parts>
[[noreturn]] void failed(const Parts&... parts) {
  throw Failure{ErrorCode::kFailed, joined(parts...)};
}

// The beginning of a text, without half a character of UTF-8 at its end.
inline std::string beginning(const std::string& text, std::size_t most) {
  if (text.size() <= most) return text;
  while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xc0) == 0x80) --most;
  return text.substr(0, most);
}

// A text of another library's in one short line.
inline std::string one_line(const std::string& text, std::size_t most = 300) {
  std::istringstream words(text);
  std::string word, out;
  while (words >> word) out += (out.empty() ? "" : " ") + word;
  return beginning(out, most);
}

// How many bytes the character of UTF-8 at a place has; 0: it is none.
inline std::size_t character_at(const std::string& text, std::size_t place) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(place);
  if (first < 0x80) return first < 0x20 || first == 0x7f ? 0 : 1;
  const std::size_t length = first >= 0xf0 && first < 0xf5   ? 4
                             : first >= 0xe0 && first < 0xf0 ? 3
                             : first >= 0xc2 && first < 0xe0 ? 2
                                                             : 0;
  if (length == 0 || place + length > text.size()) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(place + i) & 0xc0) != 0x80) return 0;
  }
  return length;
}

// A message in UTF-8 and one line, whatever the names in a file hold: no NUL, which would end it for C, and nothing
// that a terminal takes for a command.
inline std::string printable(const std::string& text) {
  std::string out;
  for (std::size_t place = 0; place < text.size();) {
    const std::size_t length = character_at(text, place);
    out += length == 0 ? std::string("?") : text.substr(place, length);
    place += length == 0 ? 1 : length;
  }
  return out;
}

// The error of what was thrown, where it is caught.
inline Error caught() noexcept {
  try {
    try {
      throw;
    } catch (const Failure& failure) {
      return {failure.code, printable(failure.message)};
    } catch (const std::bad_alloc&) {
      return {ErrorCode::kFailed, "memory: expected more, found too little; use smaller images or batches"};
    } catch (const std::exception& error) {
      return {ErrorCode::kFailed, printable(one_line(error.what()))};
    } catch (...) {
      return {ErrorCode::kFailed, "expected to run, found an exception without a text"};
    }
  } catch (...) {
    // So short that a std::string holds it in itself: there is no memory for a longer one.
    return {ErrorCode::kFailed, "out of memory"};
  }
}

// Runs what may throw; returns its value or the error.
template <typename Run>
auto guarded(const Run& run) noexcept -> Result<decltype(run())> {
  try {
    return run();
  } catch (...) {
    return caught();
  }
}

}  // namespace maskrcnn
