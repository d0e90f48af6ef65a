// Errors inside the library: thrown as Failure, and made a Result's Error at the boundary. Nothing else crosses it.
#pragma once

#include <exception>
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

template <typename... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream out;
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
  // No NUL, which would end the message for C, and nothing that a terminal takes for a command.
  for (char& c : out) c = static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return beginning(out, most);
}

// Runs what may throw; returns its value or the error.
template <typename Run>
auto guarded(const Run& run) noexcept -> Result<decltype(run())> {
  try {
    return run();
  } catch (Failure& failure) {
    return Error{failure.code, std::move(failure.message)};
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kFailed, "memory: expected more, found too little; use smaller images or batches"};
  } catch (const std::exception& error) {
    return Error{ErrorCode::kFailed, one_line(error.what())};
  } catch (...) {
    return Error{ErrorCode::kFailed, "expected to run, found an exception without a text"};
  }
}

}  // namespace maskrcnn
