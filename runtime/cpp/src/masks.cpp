#include "masks.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "errors.h"
#include "plugins/encode_masks/encode_masks_reference.h"
#include "plugins/paste_masks/paste_masks_math.h"
#include "resize.h"

namespace maskrcnn {
namespace {

// Which pixels of one axis are pasted, and the two cells that each lies between.
struct Axis {
  PixelRange range;
  std::vector<MaskTap> taps;
};

Axis box_axis(float low, float high, std::int64_t image_size, std::int64_t num_cells) {
  const int size = static_cast<int>(image_size), cells = static_cast<int>(num_cells);
  Axis axis{paste_range(low, high, size), {}};
  for (int px = axis.range.begin; px < axis.range.end; ++px) {
    const float position = mask_position(px, low, high, cells);
    // A box of NaN, or whose edges are alike, sets no pixel, whatever the threshold.
    axis.taps.push_back(position == position ? mask_tap(position, cells) : MaskTap{0, 0, position, 0.f});
  }
  return axis;
}

// The pixels of one axis with low <= pixel < high.
PixelRange cut_range(double low, double high, std::int64_t limit) {
  const auto size = static_cast<double>(limit);
  if (!(low < size && high > 0 && low < high)) return {0, 0};
  const int begin = static_cast<int>(std::ceil(std::max(low, 0.0)));
  return {begin, std::max(begin, static_cast<int>(std::ceil(std::min(high, size))))};
}

struct GridLine {
  double scale, offset;
  std::int64_t padded, cells;
};

Axis grid_axis(float low, float high, std::int64_t image_size, const GridLine& line) {
  Axis axis{cut_range(low, high, image_size), {}};
  const double per_px = static_cast<double>(line.cells) / static_cast<double>(line.padded);
  for (int px = axis.range.begin; px < axis.range.end; ++px) {
    const double centre = (static_cast<double>(px) + 0.5) * line.scale + line.offset;
    const double place = std::clamp(centre * per_px - 0.5, 0.0, static_cast<double>(line.cells - 1));
    const int first = static_cast<int>(std::floor(place));
    const int second = std::min(first + 1, static_cast<int>(line.cells - 1));
    const double share = second == first ? 0.0 : 1.0 - std::abs(place - second);
    axis.taps.push_back(
        {first, second, static_cast<float>(1.0 - std::abs(place - first)), static_cast<float>(std::max(0.0, share))});
  }
  return axis;
}

// Rows of the mask at the image's columns, then the image's rows: the products of postprocess.py, whose weights are
// zero but for two.
template <typename IsSet>
Mask pasted(const float* cells, std::int64_t cell_rows, std::int64_t cell_width, const Axis& rows, const Axis& columns,
            const IsSet& is_set) {
  const auto width = static_cast<std::int64_t>(columns.taps.size());
  const auto height = static_cast<std::int64_t>(rows.taps.size());
  Mask mask{rows.range.begin, columns.range.begin, static_cast<int>(height), static_cast<int>(width), {}};
  if (height == 0 || width == 0) return {};
  std::vector<float> stretched(static_cast<std::size_t>(cell_rows * width));
  for (std::int64_t row = 0; row < cell_rows; ++row) {
    const float* from = cells + row * cell_width;
    float* to = stretched.data() + row * width;
    for (const MaskTap& x : columns.taps) *to++ = x.low_weight * from[x.low] + x.high_weight * from[x.high];
  }
  mask.pixels.resize(static_cast<std::size_t>(height * width));
  std::uint8_t* to = mask.pixels.data();
  for (const MaskTap& y : rows.taps) {
    const float* low = stretched.data() + y.low * width;
    const float* high = stretched.data() + y.high * width;
    for (std::int64_t x = 0; x < width; ++x) *to++ = is_set(y.low_weight * low[x] + y.high_weight * high[x]) ? 1 : 0;
  }
  return mask;
}

Mask crop_mask(const Internals& in, std::size_t index) {
  const Box& box = in.boxes[index];
  const Axis rows = box_axis(box.y1, box.y2, in.image.height, in.cells.height);
  const Axis columns = box_axis(box.x1, box.x2, in.image.width, in.cells.width);
  const auto threshold = static_cast<float>(in.metadata->mask_threshold);
  const float* cells = in.probabilities.data() + static_cast<std::int64_t>(index) * in.cells.height * in.cells.width;
  return pasted(cells, in.cells.height, in.cells.width, rows, columns, [=](float p) { return p >= threshold; });
}

Mask grid_mask(const Internals& in, std::size_t index) {
  const Box& box = in.boxes[index];
  const Axis rows =
      grid_axis(box.y1, box.y2, in.image.height, {in.scale.y, in.offset.y, in.padded.height, in.cells.height});
  const Axis columns =
      grid_axis(box.x1, box.x2, in.image.width, {in.scale.x, in.offset.x, in.padded.width, in.cells.width});
  const auto threshold = static_cast<float>(in.metadata->mask_threshold);
  const float* cells = in.probabilities.data() + static_cast<std::int64_t>(index) * in.cells.height * in.cells.width;
  return pasted(cells, in.cells.height, in.cells.width, rows, columns, [=](float p) { return p > threshold; });
}

Mask full_size_mask(const Internals& in, std::size_t index) {
  const std::int64_t num_cells = in.cells.height * in.cells.width;
  std::vector<std::uint8_t> cells(in.pixels.begin() + static_cast<std::int64_t>(index) * num_cells,
                                  in.pixels.begin() + static_cast<std::int64_t>(index + 1) * num_cells);
  // 255 instead of 1: what is sampled is whole numbers, and 128 is then the half.
  for (std::uint8_t& cell : cells) cell = static_cast<std::uint8_t>(cell * 255);
  Mask mask{0, 0, static_cast<int>(in.image.height), static_cast<int>(in.image.width), {}};
  const View<std::uint8_t> view{cells.data(), static_cast<int>(in.cells.height), static_cast<int>(in.cells.width), 1,
                                in.cells.width};
  mask.pixels = in.cells == in.image ? std::move(cells) : resized(view, in.image);
  for (std::uint8_t& pixel : mask.pixels) pixel = pixel >= 128 ? 1 : 0;
  return mask;
}

// The numbers of COCO's string (rleToString of pycocotools' maskApi.c): 5 bits a character, the lowest first, a bit for
// "more follows"; from the fourth on, the difference to the last but one.
std::vector<std::int64_t> runs_from_counts(const std::string& counts) {
  std::vector<std::int64_t> runs;
  std::size_t place = 0;
  while (place < counts.size()) {
    std::int64_t value = 0;
    int shift = 0;
    bool more = true;
    while (more) {
      if (place == counts.size() || shift > 30) failed("run lengths: expected COCO's string, found a damaged one");
      const int code = counts[place++] - 48;
      value |= static_cast<std::int64_t>(code & 0x1f) << shift;
      shift += 5;
      more = (code & 0x20) != 0;
      if (!more && (code & 0x10) != 0) value -= std::int64_t{1} << shift;
    }
    runs.push_back(runs.size() > 2 ? value + runs[runs.size() - 2] : value);
  }
  return runs;
}

}  // namespace

void check_mask(const Internals* internals, std::size_t index) {
  if (internals == nullptr || internals->metadata->mask_mode == MaskMode::kNone) {
    failed(
        "masks: expected a model with masks, found one without a mask head; check has_masks first, or use a model "
        "that has one (Mask R-CNN)");
  }
  if (index >= internals->boxes.size()) {
    invalid("masks: expected an index below ", internals->boxes.size(), ", found ", index);
  }
}

Mask mask_of(const Internals& internals, std::size_t index) {
  if (internals.has_counts) return mask_from_counts(internals.counts[index], internals.image);
  switch (internals.metadata->mask_mode) {
    case MaskMode::kCrop:
      return crop_mask(internals, index);
    case MaskMode::kGrid:
      return grid_mask(internals, index);
    default:
      return full_size_mask(internals, index);
  }
}

std::string counts_of(const Internals& internals, std::size_t index) {
  if (internals.has_counts) return internals.counts[index];
  return counts_from_mask(mask_of(internals, index), internals.image);
}

std::string counts_from_mask(const Mask& mask, const Size& image) {
  RunEnds runs;
  for (int x = 0; x < mask.width; ++x) {
    const std::int64_t column = (mask.left + x) * image.height + mask.top;
    if (mask.top > 0) runs.tell(column - mask.top, false);
    const std::uint8_t* pixel = mask.pixels.data() + x;
    for (int y = 0; y < mask.height; ++y, pixel += mask.width) runs.tell(column + y, *pixel != 0);
    if (mask.top + mask.height < image.height) runs.tell(column + mask.height, false);
  }
  if (mask.width > 0 && mask.left + mask.width < image.width) {
    runs.tell((mask.left + mask.width) * image.height, false);
  }
  return runs.encoded(image.height * image.width);
}

Mask mask_from_counts(const std::string& counts, const Size& image) {
  Mask mask{0, 0, static_cast<int>(image.height), static_cast<int>(image.width), {}};
  mask.pixels.resize(static_cast<std::size_t>(image.height * image.width));
  const std::int64_t num_pixels = image.height * image.width;
  std::int64_t position = 0;
  bool value = false;
  for (const std::int64_t run : runs_from_counts(counts)) {
    if (run < 0 || run > num_pixels - position) {
      failed("run lengths: expected ", num_pixels, " pixels, found other runs");
    }
    for (const std::int64_t end = position + run; position < end; ++position) {
      if (value)
        mask.pixels[static_cast<std::size_t>(position % image.height * image.width + position / image.height)] = 1;
    }
    value = !value;
  }
  return mask;
}

}  // namespace maskrcnn
