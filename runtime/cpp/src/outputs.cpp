#include "outputs.h"

#include <algorithm>
#include <cmath>

#include "contract.h"
#include "errors.h"
#include "masks.h"

namespace maskrcnn {
namespace {

// One image of a batch.
struct Slice {
  const Outputs& outputs;
  std::int64_t index;
  std::int64_t num_rows;  // in the outputs
  const Metadata& metadata;

  const float* det(std::int64_t row) const { return outputs.dets + (index * num_rows + row) * 5; }
  std::int32_t label(std::int64_t row) const { return outputs.labels[index * num_rows + row]; }
};

std::int64_t count_of(const Slice& slice) {
  const std::int32_t found = slice.outputs.num_dets[slice.index];
  if (found < 0 || found > slice.num_rows) {
    failed("model output num_dets[", slice.index, "]: expected 0 to ", slice.num_rows, ", found ", found,
           "; the model is damaged or not one of ours, export it again with `python -m export.maskrcnn`");
  }
  return found;
}

void check_rows(const Slice& slice, std::int64_t count) {
  const auto num_classes = static_cast<std::int64_t>(slice.metadata.info.classes.size());
  for (std::int64_t row = 0; row < count; ++row) {
    const float* det = slice.det(row);
    if (!std::all_of(det, det + 5, [](float v) { return std::isfinite(v); })) {
      failed("model output dets[", slice.index, ", ", row, "]: expected finite boxes and scores, found [", det[0], ", ",
             det[1], ", ", det[2], ", ", det[3], ", ", det[4],
             "]; a half-precision model has overflowed: keep its geometry in FP32, or run it in FP32");
    }
    const std::int32_t label = slice.label(row);
    if (label < 0 || label >= num_classes) {
      failed("model output labels[", slice.index, "]: expected 0 to ", num_classes - 1, " for the ", num_classes,
             " classes in the metadata, found ", label,
             "; the metadata is another model's, export it again with `python -m export.maskrcnn`");
    }
  }
}

// Where an image lies in the network's input.
struct Place {
  Size image;
  Point scale, offset;
};

// In the image's own px, with mmdet's operations: float32 throughout.
Box image_box(const float* det, const Place& place, bool clip) {
  const auto x = static_cast<float>(place.offset.x), y = static_cast<float>(place.offset.y);
  const auto scale_x = static_cast<float>(place.scale.x), scale_y = static_cast<float>(place.scale.y);
  Box box{(det[0] - x) / scale_x, (det[1] - y) / scale_y, (det[2] - x) / scale_x, (det[3] - y) / scale_y};
  if (!clip) return box;
  const auto width = static_cast<float>(place.image.width), height = static_cast<float>(place.image.height);
  return {std::clamp(box.x1, 0.f, width), std::clamp(box.y1, 0.f, height), std::clamp(box.x2, 0.f, width),
          std::clamp(box.y2, 0.f, height)};
}

void read_keypoints(const Slice& slice, std::int64_t row, const Place& place, Detections& found) {
  const auto count = static_cast<std::int64_t>(slice.metadata.info.keypoints.size());
  const float* points = slice.outputs.keypoints + (slice.index * slice.num_rows + row) * count * 3;
  for (std::int64_t i = 0; i < count; ++i, points += 3) {
    if (!std::isfinite(points[0]) || !std::isfinite(points[1]) || !std::isfinite(points[2])) {
      failed("model output keypoints[", row, "]: expected finite key points, found [", points[0], ", ", points[1], ", ",
             points[2], "]; a half-precision model has overflowed: run it in FP32");
    }
    found.keypoints.push_back({(points[0] - static_cast<float>(place.offset.x)) / static_cast<float>(place.scale.x),
                               (points[1] - static_cast<float>(place.offset.y)) / static_cast<float>(place.scale.y),
                               points[2]});
  }
}

// Appends one row's mask; of mode full only what is not padding.
void keep_mask(const Slice& slice, std::int64_t row, Internals& internals) {
  const Outputs& outputs = slice.outputs;
  const std::int64_t index = slice.index * slice.num_rows + row;
  if (outputs.counts != nullptr) {
    internals.counts.push_back((*outputs.counts)[static_cast<std::size_t>(index)]);
    return;
  }
  const std::int64_t num_cells = outputs.cells.height * outputs.cells.width;
  if (outputs.probabilities != nullptr) {
    const float* cells = outputs.probabilities + index * num_cells;
    internals.probabilities.insert(internals.probabilities.end(), cells, cells + num_cells);
  }
  if (outputs.pixels == nullptr) return;
  const std::uint8_t* pixels = outputs.pixels + index * num_cells;
  for (std::int64_t y = 0; y < internals.cells.height; ++y, pixels += outputs.cells.width) {
    internals.pixels.insert(internals.pixels.end(), pixels, pixels + internals.cells.width);
  }
}

std::shared_ptr<Internals> internals_of(const Outputs& outputs, const Geometry& geometry, std::size_t index,
                                        const Place& place, const std::shared_ptr<const Metadata>& metadata) {
  auto internals = std::make_shared<Internals>();
  internals->metadata = metadata;
  internals->image = place.image;
  internals->cells = outputs.pixels == nullptr ? outputs.cells : geometry.contents[index];
  internals->scale = place.scale;
  internals->offset = place.offset;
  internals->padded = geometry.padded;
  internals->has_counts = outputs.counts != nullptr;
  return internals;
}

Detections detections_of_image(const Outputs& outputs, const Geometry& geometry, std::size_t index,
                               const std::shared_ptr<const Metadata>& metadata, float min_score) {
  const Slice slice{outputs, static_cast<std::int64_t>(index), metadata->info.max_detections, *metadata};
  const std::int64_t count = count_of(slice);
  check_rows(slice, count);
  const Size& image = geometry.originals[index];
  const Place place{image, final_scale_factor(image, metadata->steps), final_offset(image, metadata->steps)};
  auto internals = internals_of(outputs, geometry, index, place, metadata);
  Detections found;
  found.image_height = static_cast<int>(image.height);
  found.image_width = static_cast<int>(image.width);
  for (std::int64_t row = 0; row < count; ++row) {
    const float score = slice.det(row)[4];
    if (min_score > 0 && !(score >= min_score)) continue;
    found.boxes.push_back(image_box(slice.det(row), place, metadata->clip));
    found.scores.push_back(score);
    found.labels.push_back(slice.label(row));
    if (outputs.keypoints != nullptr) read_keypoints(slice, row, place, found);
    keep_mask(slice, row, *internals);
  }
  internals->boxes = found.boxes;
  Internals::attach(found, std::move(internals));
  return found;
}

}  // namespace

std::vector<Detections> detections_from(const Outputs& outputs, const Geometry& geometry,
                                        const std::shared_ptr<const Metadata>& metadata, float min_score) {
  std::vector<Detections> found;
  for (std::size_t i = 0; i < geometry.originals.size(); ++i) {
    found.push_back(detections_of_image(outputs, geometry, i, metadata, min_score));
  }
  return found;
}

void check_shape(const std::string& name, const std::vector<std::int64_t>& expected,
                 const std::vector<std::int64_t>& found) {
  const auto agree = [](std::int64_t a, std::int64_t b) { return a == b || (a == kFree && b > 0); };
  if (expected.size() == found.size() && std::equal(expected.begin(), expected.end(), found.begin(), agree)) return;
  const auto words = [](const std::vector<std::int64_t>& shape) {
    std::string out;
    for (const std::int64_t size : shape) {
      out += (out.empty() ? "" : ", ") + (size == kFree ? std::string("?") : std::to_string(size));
    }
    return "(" + out + ")";
  };
  failed("model output ", name, ": expected shape ", words(expected), ", found ", words(found),
         "; the model is damaged or not one of ours, export it again with `python -m export.maskrcnn`");
}

}  // namespace maskrcnn
