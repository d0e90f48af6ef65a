#include "resize.h"

#include <cstring>

#include "plugins/prepare_images/prepare_images_math.h"

namespace maskrcnn {
namespace {

// A row of the image at the width of the result, in 1 / 128: what blended_rows takes two of.
class WideRow {
 public:
  WideRow(const View<std::uint8_t>& image, const std::vector<ResizeTap>& columns)
      : image_(image), columns_(columns), values_(columns.size() * image.channels) {}

  const int* at(int row) {
    if (row != row_) fill(row);
    return values_.data();
  }
  int row() const { return row_; }

 private:
  void fill(int row) {
    const std::uint8_t* pixels = image_.row(row);
    int* out = values_.data();
    for (const ResizeTap& column : columns_) {
      const std::uint8_t* low = pixels + static_cast<std::int64_t>(column.low) * image_.channels;
      const std::uint8_t* high = pixels + static_cast<std::int64_t>(column.high) * image_.channels;
      for (int c = 0; c < image_.channels; ++c) *out++ = blended_columns(low[c], high[c], column);
    }
    row_ = row;
  }

  const View<std::uint8_t>& image_;
  const std::vector<ResizeTap>& columns_;
  std::vector<int> values_;
  int row_ = -1;
};

std::vector<ResizeTap> column_taps(int width, int source_width) {
  const double scale = resize_scale(source_width, width);
  std::vector<ResizeTap> taps(static_cast<std::size_t>(width));
  for (int x = 0; x < width; ++x) taps[static_cast<std::size_t>(x)] = column_tap(x, scale, source_width);
  return taps;
}

}  // namespace

std::vector<std::uint8_t> resized(const View<std::uint8_t>& image, const Size& size) {
  const int height = static_cast<int>(size.height);
  const std::size_t row_bytes = static_cast<std::size_t>(size.width) * static_cast<std::size_t>(image.channels);
  const std::vector<ResizeTap> columns = column_taps(static_cast<int>(size.width), image.width);
  const double scale = resize_scale(image.height, height);
  std::vector<std::uint8_t> out(static_cast<std::size_t>(height) * row_bytes);
  // Two rows are kept: going down, the lower one is often the next one's upper.
  WideRow first(image, columns), second(image, columns);
  WideRow *upper = &first, *lower = &second;
  std::uint8_t* target = out.data();
  for (int y = 0; y < height; ++y) {
    const ResizeTap tap = row_tap(y, scale, image.height);
    if (lower->row() == tap.low) std::swap(upper, lower);
    const int* low = upper->at(tap.low);
    const int* high = tap.high == tap.low ? low : lower->at(tap.high);
    for (std::size_t i = 0; i < row_bytes; ++i)
      *target++ = static_cast<std::uint8_t>(blended_rows(low[i], high[i], tap));
  }
  return out;
}

}  // namespace maskrcnn
