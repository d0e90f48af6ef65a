// Protobuf's wire format (https://protobuf.dev/programming-guides/encoding): what is read of an ONNX file without onnx.
#pragma once

#include <cstdint>
#include <string>

#include "errors.h"

namespace maskrcnn {

// A message, field by field; numbers of fields are those of onnx.proto. Throws kInvalid where it is damaged. It points
// into the bytes that it is made of.
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
      case kVarint:
        value_ = varint();
        break;
      case 1:
        skip(8);
        break;
      case kBytes:
        skip(varint());
        break;
      case 5:
        skip(4);
        break;
      default:
        damaged("a field of no known kind");
    }
    kind_ = tag & 7;
    if (number_ == 0) damaged("a field without a number");
    return true;
  }

  // Whether it is the field of that number and has bytes: a text, or a message.
  bool is(std::uint64_t number) const { return kind_ == kBytes && number_ == number; }
  bool is_number(std::uint64_t number) const { return kind_ == kVarint && number_ == number; }
  std::uint64_t value() const { return value_; }
  std::string text() const { return {begin_, place_}; }
  Message message() const { return {begin_, place_}; }

  // The next number of a packed field, whose bytes this was made of.
  bool next_packed() {
    if (place_ == end_) return false;
    value_ = varint();
    return true;
  }

 private:
  static constexpr std::uint64_t kVarint = 0, kBytes = 2;

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
  std::uint64_t kind_ = kVarint;
};

}  // namespace maskrcnn
