#include "steps.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "errors.h"
#include "resize.h"

namespace maskrcnn {
namespace {

// Python's int(): towards zero. What no image has stays above every limit without overflowing.
std::int64_t whole(double value) {
  constexpr double kMost = 2147483648.0;
  return value < kMost ? static_cast<std::int64_t>(value) : static_cast<std::int64_t>(kMost);
}

std::int64_t at_least_one(std::int64_t value) { return std::max<std::int64_t>(1, value); }

// mmcv.imrescale: the long edge within the larger of the scale, the short one in the other.
Size rescaled_size(const Size& before, double scale_a, double scale_b, bool floor) {
  const auto longer = static_cast<double>(std::max(before.height, before.width));
  const auto shorter = static_cast<double>(std::min(before.height, before.width));
  const double factor = std::min(std::max(scale_a, scale_b) / longer, std::min(scale_a, scale_b) / shorter);
  const double half = floor ? 0.0 : 0.5;
  return {at_least_one(whole(static_cast<double>(before.height) * factor + half)),
          at_least_one(whole(static_cast<double>(before.width) * factor + half))};
}

template <typename T>
T channel_value(double value);

template <>
float channel_value<float>(double value) {
  return static_cast<float>(value);
}

// OpenCV's saturate_cast: halves to even.
template <>
std::uint8_t channel_value<std::uint8_t>(double value) {
  return static_cast<std::uint8_t>(std::clamp(std::nearbyint(value), 0.0, 255.0));
}

// OpenCV's borderInterpolate: which pixel of an axis stands beyond its end.
std::int64_t mirrored(std::int64_t place, std::int64_t length, bool skips_edge) {
  if (length == 1) return 0;
  const std::int64_t delta = skips_edge ? 1 : 0;
  while (place < 0 || place >= length) {
    place = place < 0 ? -place - 1 + delta : length - 1 - (place - length) - delta;
  }
  return place;
}

std::int64_t source_place(std::int64_t place, std::int64_t length, PaddingMode mode) {
  if (mode == PaddingMode::kEdge) return std::clamp<std::int64_t>(place, 0, length - 1);
  return mirrored(place, length, mode == PaddingMode::kReflect);
}

struct Border {
  Size size;  // of the result
  std::int64_t top, left;
  PixelValue value;
  PaddingMode mode;
};

template <typename T>
void fill(std::vector<T>& pixels, int channels, const PixelValue& value) {
  for (std::size_t i = 0; i < pixels.size(); ++i) {
    pixels[i] = channel_value<T>(value[i % static_cast<std::size_t>(channels)]);
  }
}

template <typename T>
std::vector<T> padded(const View<T>& view, const Border& border) {
  const auto channels = static_cast<std::int64_t>(view.channels);
  const std::int64_t row_length = border.size.width * channels;
  std::vector<T> out(static_cast<std::size_t>(border.size.height * row_length));
  if (border.mode == PaddingMode::kConstant) {
    fill(out, view.channels, border.value);
    for (std::int64_t y = 0; y < view.height; ++y) {
      T* target = out.data() + (y + border.top) * row_length + border.left * channels;
      std::memcpy(target, view.row(y), static_cast<std::size_t>(view.width * channels) * sizeof(T));
    }
    return out;
  }
  for (std::int64_t y = 0; y < border.size.height; ++y) {
    const T* row = view.row(source_place(y - border.top, view.height, border.mode));
    T* target = out.data() + y * row_length;
    for (std::int64_t x = 0; x < border.size.width; ++x) {
      const T* pixel = row + source_place(x - border.left, view.width, border.mode) * channels;
      for (std::int64_t c = 0; c < channels; ++c) *target++ = pixel[c];
    }
  }
  return out;
}

void pad(Canvas& canvas, const Border& border) {
  const int channels = canvas.channels();
  if (canvas.is_float()) return canvas.take(padded(canvas.floats(), border), border.size, channels);
  canvas.take(padded(canvas.bytes(), border), border.size, channels);
}

}  // namespace

std::optional<Point> ResizeStep::scale_factor(const Size& before) const {
  const Size after = size(before);
  return Point{static_cast<double>(after.width) / static_cast<double>(before.width),
               static_cast<double>(after.height) / static_cast<double>(before.height)};
}

void ResizeStep::apply(Canvas& canvas) const {
  const Size after = size(canvas.size());
  if (after == canvas.size()) return;
  const int channels = canvas.channels();
  canvas.take(resized(canvas.bytes(), after), after, channels);
}

std::string ResizeStep::refusal(bool is_float) const {
  if (sampling_.backend != "cv2" || sampling_.interpolation != "bilinear") {
    return "expected bilinear of cv2, found " + sampling_.interpolation + " of " + sampling_.backend;
  }
  return is_float ? "expected pixels in uint8, found float32 (to_float32, or a normalize before it)" : "";
}

Size Resize::size(const Size& before) const {
  Point scale{0, 0};
  if (rule_.scale) {
    scale = *rule_.scale;
  } else {
    scale = {static_cast<double>(whole(static_cast<double>(before.width) * rule_.factors->x + 0.5)),
             static_cast<double>(whole(static_cast<double>(before.height) * rule_.factors->y + 0.5))};
  }
  if (rule_.keep_ratio) return rescaled_size(before, scale.x, scale.y, rule_.floor);
  return {at_least_one(whole(scale.y)), at_least_one(whole(scale.x))};
}

Size ResizeShortestEdge::size(const Size& before) const {
  const auto height = static_cast<double>(before.height);
  const auto width = static_cast<double>(before.width);
  const double edge = rule_.scale;
  const double scale = edge / std::min(height, width);
  double new_height = height < width ? edge : scale * height;
  double new_width = height < width ? scale * width : edge;
  if (rule_.max_size > 0 && std::max(new_height, new_width) > rule_.max_size) {
    const double shrink = rule_.max_size / std::max(new_height, new_width);
    new_height = new_height * shrink;
    new_width = new_width * shrink;
  }
  const Size rounded{whole(new_height + 0.5), whole(new_width + 0.5)};
  if (rule_.keep_ratio) {
    return rescaled_size(before, static_cast<double>(rounded.width), static_cast<double>(rounded.height), rule_.floor);
  }
  return {at_least_one(rounded.height), at_least_one(rounded.width)};
}

double FixShapeResize::factor(const Size& before) const {
  return std::min(static_cast<double>(shape_.width) / static_cast<double>(before.width),
                  static_cast<double>(shape_.height) / static_cast<double>(before.height));
}

Size FixShapeResize::size(const Size& before) const {
  if (!keep_ratio_) return shape_;
  const double scale = factor(before);
  return rescaled_size(before, static_cast<double>(whole(static_cast<double>(before.width) * scale + 0.5)),
                       static_cast<double>(whole(static_cast<double>(before.height) * scale + 0.5)), false);
}

std::optional<Point> FixShapeResize::scale_factor(const Size& before) const {
  if (!keep_ratio_) return ResizeStep::scale_factor(before);
  const double scale = factor(before);
  return Point{scale, scale};
}

Size Fit::size(const Size& before) const {
  const auto height = static_cast<double>(before.height);
  const auto width = static_cast<double>(before.width);
  const double scale = std::min(static_cast<double>(box_.height) / height, static_cast<double>(box_.width) / width);
  const auto edge = [&](double length, std::int64_t limit) {
    double value = length * scale;
    if (rounding_ == Rounding::kHalfUp) value += 0.5;
    if (rounding_ == Rounding::kHalfEven) value = std::nearbyint(value);
    return std::min(limit, at_least_one(whole(value)));
  };
  return {edge(height, box_.height), edge(width, box_.width)};
}

Size Pad::size(const Size& before) const {
  Size target = before;
  if (rule_.to_square) target.height = target.width = std::max(before.height, before.width);
  if (rule_.size_divisor > 0) {
    const auto multiple = [&](std::int64_t length) {
      return whole(std::ceil(static_cast<double>(length) / rule_.size_divisor) * rule_.size_divisor);
    };
    target = {multiple(target.height), multiple(target.width)};
  } else if (rule_.shape) {
    target = *rule_.shape;
  }
  return {std::max(before.height, target.height), std::max(before.width, target.width)};
}

void Pad::apply(Canvas& canvas) const { pad(canvas, {size(canvas.size()), 0, 0, rule_.value, rule_.mode}); }

Size CenterPad::size(const Size& before) const {
  return {std::max(before.height, box_.height), std::max(before.width, box_.width)};
}

Point CenterPad::offset(const Size& before) const {
  const Size target = size(before);
  return {static_cast<double>((target.width - before.width) / 2),
          static_cast<double>((target.height - before.height) / 2)};
}

void CenterPad::apply(Canvas& canvas) const {
  const Size before = canvas.size(), target = size(before);
  pad(canvas,
      {target, (target.height - before.height) / 2, (target.width - before.width) / 2, value_, PaddingMode::kConstant});
}

void Normalize::apply(Canvas& canvas) const {
  const int channels = canvas.channels();
  if (static_cast<std::size_t>(channels) != mean_.size()) {
    invalid("steps, normalize: expected images of ", mean_.size(), " channels, found ", channels);
  }
  if (to_rgb_ && channels < 3) invalid("steps, normalize: expected images in colour (to_rgb), found 1 channel");
  const Size size = canvas.size();
  std::vector<float> out(static_cast<std::size_t>(size.height * size.width * channels));
  canvas.with_view([&](const auto& view) {
    for (int c = 0; c < channels; ++c) {
      // mmcv keeps both as float32 and computes the reciprocal in double, in which OpenCV 5 multiplies.
      const auto index = static_cast<std::size_t>(c);
      const auto mean = static_cast<float>(mean_[index]);
      const double reciprocal = 1.0 / static_cast<double>(static_cast<float>(std_[index]));
      const int from = to_rgb_ && c < 3 ? 2 - c : c;
      float* target = out.data() + c;
      for (std::int64_t y = 0; y < size.height; ++y) {
        const auto* pixel = view.row(y) + from;
        for (std::int64_t x = 0; x < size.width; ++x, pixel += channels, target += channels) {
          *target = static_cast<float>(static_cast<double>(static_cast<float>(*pixel) - mean) * reciprocal);
        }
      }
    }
  });
  canvas.take(std::move(out), size, channels);
}

CenterCrop::Window CenterCrop::window(const Size& before) const {
  Size size = before, crop = crop_;
  Window found{};
  if (crop.height > size.height || crop.width > size.width) {
    if (pad_) {
      size = {std::max(size.height, crop.height), std::max(size.width, crop.width)};
      found.padded = size;
    } else {
      crop = {std::min(crop.height, size.height), std::min(crop.width, size.width)};
    }
  }
  // Python's round: halves to even.
  const auto middle = [](std::int64_t length, std::int64_t part) {
    return std::max<std::int64_t>(0,
                                  static_cast<std::int64_t>(std::nearbyint(static_cast<double>(length - part) / 2.0)));
  };
  found.top = middle(size.height, crop.height);
  found.left = middle(size.width, crop.width);
  found.bottom = std::min(size.height, found.top + crop.height);
  found.right = std::min(size.width, found.left + crop.width);
  return found;
}

Size CenterCrop::size(const Size& before) const {
  const Window found = window(before);
  return {found.bottom - found.top, found.right - found.left};
}

void CenterCrop::apply(Canvas& canvas) const {
  const Window found = window(canvas.size());
  if (found.padded) pad(canvas, {*found.padded, 0, 0, pad_->value, pad_->mode});
  const auto cut = [&](auto view) {
    view.data = view.row(found.top) + found.left * view.channels;
    view.height = static_cast<int>(found.bottom - found.top);
    view.width = static_cast<int>(found.right - found.left);
    return view;
  };
  if (canvas.is_float()) return canvas.show(cut(canvas.floats()));
  canvas.show(cut(canvas.bytes()));
}

Size final_size(Size size, const Steps& steps) {
  for (const auto& step : steps) {
    const Size before = size;
    size = step->size(before);
    if (size.height * size.width > kMaxPixels) {
      invalid("steps, ", step->name(), ": expected up to ", kMaxPixels, " pixels, found ", size.height, "x", size.width,
              " made of an image of ", before.height, "x", before.width,
              " px (height x width); use a smaller image, or correct the test pipeline");
    }
  }
  return size;
}

Point final_scale_factor(Size size, const Steps& steps) {
  Point found{1, 1};
  for (const auto& step : steps) {
    found = step->scale_factor(size).value_or(found);
    size = step->size(size);
  }
  return found;
}

Point final_offset(Size size, const Steps& steps) {
  Point at{0, 0};
  for (const auto& step : steps) {
    const Point factor = step->scale_factor(size).value_or(Point{1, 1});
    const Point added = step->offset(size);
    at = {at.x * factor.x + added.x, at.y * factor.y + added.y};
    size = step->size(size);
  }
  return at;
}

}  // namespace maskrcnn
