// An image on its way to the network: a view of the caller's pixels at first, then memory of its own.
#pragma once

#include <cstdint>
#include <utility>
#include <variant>
#include <vector>

namespace maskrcnn {

// px; 64 bits, since what a damaged file asks for is multiplied before it is refused.
struct Size {
  std::int64_t height;
  std::int64_t width;
};

inline bool operator==(const Size& a, const Size& b) { return a.height == b.height && a.width == b.width; }

template <typename T>
struct View {
  const T* data;
  int height;
  int width;
  int channels;
  std::int64_t pitch;  // elements from a row to the next

  const T* row(std::int64_t y) const { return data + y * pitch; }
};

class Canvas {
 public:
  explicit Canvas(const View<std::uint8_t>& view) : view_(view) {}

  bool is_float() const { return view_.index() == 1; }
  const View<std::uint8_t>& bytes() const { return std::get<0>(view_); }
  const View<float>& floats() const { return std::get<1>(view_); }

  Size size() const {
    return std::visit([](const auto& view) { return Size{view.height, view.width}; }, view_);
  }
  int channels() const {
    return std::visit([](const auto& view) { return view.channels; }, view_);
  }

  // Calls visit(view) with the pixels as they are.
  template <typename Visit>
  void with_view(const Visit& visit) const {
    std::visit(visit, view_);
  }

  void show(const View<std::uint8_t>& view) { view_ = view; }
  void show(const View<float>& view) { view_ = view; }

  // Takes rows without a gap: (height, width, channels).
  void take(std::vector<std::uint8_t> pixels, const Size& size, int channels) {
    bytes_ = std::move(pixels);
    view_ = view_of(bytes_, size, channels);
  }
  void take(std::vector<float> pixels, const Size& size, int channels) {
    floats_ = std::move(pixels);
    view_ = view_of(floats_, size, channels);
  }

 private:
  template <typename T>
  static View<T> view_of(const std::vector<T>& pixels, const Size& size, int channels) {
    return {pixels.data(), static_cast<int>(size.height), static_cast<int>(size.width), channels,
            size.width * channels};
  }

  std::variant<View<std::uint8_t>, View<float>> view_;
  std::vector<std::uint8_t> bytes_;
  std::vector<float> floats_;
};

}  // namespace maskrcnn
