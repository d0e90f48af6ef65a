// The CPU reference of the operators, as the Python module plugins._reference: argument checks and bindings. The maths
// is in <op>/<op>_math.h, which the CUDA kernels share, the loops are in <op>/<op>_reference.h.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "plugins/cast_masks/cast_masks_reference.h"
#include "plugins/common/numpy_arrays.h"
#include "plugins/decode_detections/decode_detections_reference.h"
#include "plugins/decode_proposals/decode_proposals_reference.h"
#include "plugins/encode_masks/encode_masks_reference.h"
#include "plugins/grouped_nms/grouped_nms_reference.h"
#include "plugins/multi_level_roi_align/multi_level_roi_align_math.h"
#include "plugins/paste_masks/paste_masks_reference.h"
#include "plugins/prepare_images/prepare_images_reference.h"
#include "plugins/roi_align/roi_align_reference.h"
#include "plugins/select_masks/select_masks_reference.h"
#include "plugins/select_top/select_top_reference.h"

namespace maskrcnn {
namespace {

py::array_t<int64_t> nms_binding(const py::array& boxes, const py::array& scores, float iou_threshold, int offset) {
  const auto* box_data = checked_data<float>("boxes", boxes, {kAny, 4});
  const auto* score_data = checked_data<float>("scores", scores, {boxes.shape(0)});
  check(offset == 0 || offset == 1, "offset: expected 0 or 1, found " + std::to_string(offset));
  std::vector<int64_t> kept;
  {
    const py::gil_scoped_release release;
    kept = nms(box_data, score_data, boxes.shape(0), iou_threshold, static_cast<float>(offset));
  }
  return py::array_t<int64_t>(static_cast<py::ssize_t>(kept.size()), kept.data());
}

py::tuple grouped_nms_binding(const py::array& boxes, const py::array& scores, const py::array& groups,
                              float iou_threshold, float score_threshold, int64_t max_output) {
  const auto* box_data = checked_data<float>("boxes", boxes, {kAny, kAny, 4});
  const auto batch = boxes.shape(0);
  const auto num_boxes = boxes.shape(1);
  const auto* score_data = checked_data<float>("scores", scores, {batch, num_boxes});
  const auto* group_data = checked_data<int32_t>("groups", groups, {batch, num_boxes});
  check(max_output >= 1, "max_output: expected at least 1, found " + std::to_string(max_output));
  check(num_boxes <= std::numeric_limits<int32_t>::max(),
        "boxes: expected at most 2147483647 per image, as indices are int32, found " + std::to_string(num_boxes));
  auto indices = new_array<int32_t>({batch, static_cast<py::ssize_t>(max_output)});
  auto counts = new_array<int32_t>({batch});
  auto* index_data = indices.mutable_data();
  auto* count_data = counts.mutable_data();
  {
    const py::gil_scoped_release release;
    grouped_nms({box_data, score_data, group_data, num_boxes, iou_threshold, score_threshold, max_output}, batch,
                index_data, count_data);
  }
  return py::make_tuple(indices, counts);
}

RoiAlignParams checked_params(int64_t output_height, int64_t output_width, int sampling_ratio, const std::string& mode,
                              bool aligned) {
  constexpr int64_t kMaxBins = std::numeric_limits<int16_t>::max();
  check(output_height >= 1 && output_height <= kMaxBins && output_width >= 1 && output_width <= kMaxBins,
        "output_height, output_width: expected 1 to " + std::to_string(kMaxBins) + ", found " +
            std::to_string(output_height) + ", " + std::to_string(output_width));
  check(sampling_ratio <= kMaxSamplesPerAxis, "sampling_ratio: expected at most " + std::to_string(kMaxSamplesPerAxis) +
                                                  " (0: adaptive), found " + std::to_string(sampling_ratio));
  check(mode == "avg" || mode == "max", "mode: expected 'avg' or 'max', found '" + mode + "'");
  return {static_cast<int>(output_height), static_cast<int>(output_width), sampling_ratio,
          mode == "avg" ? PoolMode::kAvg : PoolMode::kMax, aligned};
}

FeatureMap checked_map(const float* data, int64_t batch, int64_t channels, int64_t height, int64_t width,
                       double spatial_scale) {
  constexpr int64_t kMaxSize = 1 << 24;  // up to here float32 holds every pixel index
  check(batch >= 0 && channels >= 0 && height >= 1 && height <= kMaxSize && width >= 1 && width <= kMaxSize,
        "features: expected batch and channels >= 0, height and width from 1 to " + std::to_string(kMaxSize) +
            ", found " + std::to_string(batch) + ", " + std::to_string(channels) + ", " + std::to_string(height) +
            ", " + std::to_string(width));
  check(spatial_scale > 0. && std::isfinite(spatial_scale),
        "spatial_scale: expected a positive number, found " + std::to_string(spatial_scale));
  return {data, batch, channels, static_cast<int>(height), static_cast<int>(width), static_cast<float>(spatial_scale)};
}

FeatureMap checked_features(const py::array& features, double spatial_scale) {
  const auto* data = checked_data<float>("features", features, {kAny, kAny, kAny, kAny});
  return checked_map(data, features.shape(0), features.shape(1), features.shape(2), features.shape(3), spatial_scale);
}

// The results of RoIAlign as NumPy arrays; the argmax ones are empty in average mode.
struct RoiAlignArrays {
  RoiAlignArrays(int64_t num_rois, int64_t channels, const RoiAlignParams& params)
      : values(new_array<float>({num_rois, channels, params.output_height, params.output_width})) {
    const bool is_max = params.mode == PoolMode::kMax;
    const auto like_values = [&] {
      return is_max ? new_array<float>({num_rois, channels, params.output_height, params.output_width})
                    : new_array<float>({0});
    };
    argmax_y = like_values();
    argmax_x = like_values();
    out = {values.mutable_data(), argmax_y.mutable_data(), argmax_x.mutable_data()};
  }
  py::array_t<float> values;
  py::array_t<float> argmax_y;
  py::array_t<float> argmax_x;
  RoiAlignOutput out{};
};

py::tuple roi_align_forward_binding(const py::array& features, const py::array& rois, int64_t output_height,
                                    int64_t output_width, double spatial_scale, int sampling_ratio,
                                    const std::string& mode, bool aligned) {
  const RoiAlignParams params = checked_params(output_height, output_width, sampling_ratio, mode, aligned);
  const FeatureMap map = checked_features(features, spatial_scale);
  const auto* roi_data = checked_data<float>("rois", rois, {kAny, 5});
  const auto num_rois = rois.shape(0);
  RoiAlignArrays arrays(num_rois, map.channels, params);
  {
    const py::gil_scoped_release release;
    roi_align(roi_data, num_rois, map.channels, [&](const float*) { return map; }, params, arrays.out);
  }
  return py::make_tuple(arrays.values, arrays.argmax_y, arrays.argmax_x);
}

py::array_t<float> roi_align_backward_binding(const py::array& grad_output, const py::array& rois,
                                              const py::array& argmax_y, const py::array& argmax_x, int64_t batch,
                                              int64_t channels, int64_t height, int64_t width, double spatial_scale,
                                              int sampling_ratio, const std::string& mode, bool aligned) {
  const FeatureMap map = checked_map(nullptr, batch, channels, height, width, spatial_scale);
  const auto* roi_data = checked_data<float>("rois", rois, {kAny, 5});
  const auto num_rois = rois.shape(0);
  const auto* grad_data = checked_data<float>("grad_output", grad_output, {num_rois, channels, kAny, kAny});
  const RoiAlignParams params =
      checked_params(grad_output.shape(2), grad_output.shape(3), sampling_ratio, mode, aligned);
  RoiAlignGradients gradients{grad_data, nullptr, nullptr, nullptr};
  if (params.mode == PoolMode::kMax) {
    const auto shape = {num_rois, static_cast<py::ssize_t>(channels), grad_output.shape(2), grad_output.shape(3)};
    gradients.argmax_y = checked_data<float>("argmax_y", argmax_y, shape);
    gradients.argmax_x = checked_data<float>("argmax_x", argmax_x, shape);
  }
  auto grad_input = new_zeros<float>({batch, channels, height, width});
  gradients.input = grad_input.mutable_data();
  {
    const py::gil_scoped_release release;
    roi_align_backward(roi_data, num_rois, map, params, gradients);
  }
  return grad_input;
}

std::vector<FeatureMap> checked_pyramid(const std::vector<py::array>& features,
                                        const std::vector<double>& spatial_scales) {
  check(!features.empty() && features.size() == spatial_scales.size(),
        "features, spatial_scales: expected one scale per feature map and at least one, found " +
            std::to_string(features.size()) + " maps, " + std::to_string(spatial_scales.size()) + " scales");
  std::vector<FeatureMap> maps;
  for (size_t i = 0; i < features.size(); ++i) {
    maps.push_back(checked_features(features[i], spatial_scales[i]));
    check(maps[i].batch == maps[0].batch && maps[i].channels == maps[0].channels,
          "features: expected the same batch and channels on every level, found " + describe(features[0]) + " and " +
              describe(features[i]));
  }
  return maps;
}

py::array_t<float> multi_level_roi_align_binding(const std::vector<py::array>& features, const py::array& rois,
                                                 int64_t output_height, int64_t output_width,
                                                 const std::vector<double>& spatial_scales, float finest_scale,
                                                 int sampling_ratio, const std::string& mode, bool aligned) {
  const RoiAlignParams params = checked_params(output_height, output_width, sampling_ratio, mode, aligned);
  const std::vector<FeatureMap> maps = checked_pyramid(features, spatial_scales);
  const auto* roi_data = checked_data<float>("rois", rois, {kAny, 5});
  check(finest_scale > 0.f && std::isfinite(finest_scale),
        "finest_scale: expected a positive number of px, found " + std::to_string(finest_scale));
  const auto num_rois = rois.shape(0);
  RoiAlignArrays arrays(num_rois, maps[0].channels, params);
  const int num_levels = static_cast<int>(maps.size());
  {
    const py::gil_scoped_release release;
    const auto map_of = [&](const float* roi) { return maps[roi_level(roi, finest_scale, num_levels)]; };
    roi_align(roi_data, num_rois, maps[0].channels, map_of, params, arrays.out);
  }
  return arrays.values;
}

py::array_t<uint8_t> paste_masks_binding(const py::array& masks, const py::array& boxes, int64_t height, int64_t width,
                                         float threshold) {
  constexpr int64_t kMaxSize = 1 << 24;  // up to here float32 holds every pixel index
  const auto* mask_data = checked_data<float>("masks", masks, {kAny, kAny, kAny});
  const auto num_masks = masks.shape(0);
  const auto* box_data = checked_data<float>("boxes", boxes, {num_masks, 4});
  check(masks.shape(1) >= 1 && masks.shape(1) <= kMaxSize && masks.shape(2) >= 1 && masks.shape(2) <= kMaxSize,
        "masks: expected at least 1 x 1 cells, found " + describe(masks));
  check(height >= 0 && height <= kMaxSize && width >= 0 && width <= kMaxSize,
        "height, width: expected 0 to " + std::to_string(kMaxSize) + ", found " + std::to_string(height) + ", " +
            std::to_string(width));
  check(threshold >= 0.f && threshold <= 1.f,
        "threshold: expected a probability from 0 to 1, found " + std::to_string(threshold));
  auto images = new_zeros<uint8_t>({num_masks, height, width});
  auto* image_data = images.mutable_data();
  {
    const py::gil_scoped_release release;
    paste_masks({mask_data, box_data, static_cast<int>(masks.shape(1)), static_cast<int>(masks.shape(2)),
                 static_cast<int>(height), static_cast<int>(width), threshold},
                num_masks, image_data);
  }
  return images;
}

py::array_t<float> prepare_images_binding(const std::vector<py::array>& images,
                                          const std::vector<std::pair<int64_t, int64_t>>& sizes, int64_t height,
                                          int64_t width, const py::array& tables, bool reverse_channels,
                                          float pad_value) {
  const auto is_size = [](int64_t size, int64_t at_most) { return size >= 1 && size <= at_most; };
  check(is_size(height, kMaxImageSize) && is_size(width, kMaxImageSize),
        "height, width: expected 1 to " + std::to_string(kMaxImageSize) + ", found " + std::to_string(height) + ", " +
            std::to_string(width));
  check(images.size() == sizes.size(), "sizes: expected one (height, width) per image, found " +
                                           std::to_string(images.size()) + " images, " +
                                           std::to_string(sizes.size()) + " sizes");
  const auto* table_data = checked_data<float>("tables", tables, {3, kTableSize});
  PrepareImagesInput in{{}, static_cast<int>(height), static_cast<int>(width), table_data, reverse_channels};
  for (size_t i = 0; i < images.size(); ++i) {
    const auto* pixels = checked_data<uint8_t>("images", images[i], {kAny, kAny, 3});
    check(is_size(images[i].shape(0), kMaxImageSize) && is_size(images[i].shape(1), kMaxImageSize),
          "images: expected a height and width of 1 to " + std::to_string(kMaxImageSize) + ", found " +
              describe(images[i]));
    const auto [resized_height, resized_width] = sizes[i];
    check(is_size(resized_height, height) && is_size(resized_width, width),
          "sizes: expected 1 x 1 to " + std::to_string(height) + " x " + std::to_string(width) + ", found " +
              std::to_string(resized_height) + " x " + std::to_string(resized_width));
    in.images.push_back({pixels, static_cast<int>(images[i].shape(0)), static_cast<int>(images[i].shape(1)),
                         static_cast<int>(resized_height), static_cast<int>(resized_width)});
  }
  auto output = new_zeros<float>({static_cast<py::ssize_t>(images.size()), 3, height, width});
  auto* output_data = output.mutable_data();
  {
    const py::gil_scoped_release release;
    std::fill_n(output_data, output.size(), pad_value);
    prepare_images(in, output_data);
  }
  return output;
}

std::vector<TargetImage> checked_images(const py::array& sizes, const py::array& scales, py::ssize_t batch) {
  const auto* size_data = checked_data<int32_t>("sizes", sizes, {batch, 2});
  const auto* scale_data = checked_data<float>("scales", scales, {batch, 2});
  std::vector<TargetImage> images;
  for (py::ssize_t i = 0; i < batch; ++i) {
    images.push_back({size_data[2 * i], size_data[2 * i + 1], scale_data[2 * i], scale_data[2 * i + 1]});
    check(is_valid(images[i]),
          "sizes: expected heights and widths of 0 to 16777216 px and at most 2147483647 pixels, as COCO's counts have "
          "32 bits, found " +
              std::to_string(images[i].height) + " x " + std::to_string(images[i].width));
  }
  return images;
}

py::list encode_masks_binding(const py::array& masks, const py::array& dets, const py::array& num_dets,
                              const py::array& sizes, const py::array& scales, float threshold, float min_score) {
  const auto* mask_data = checked_data<float>("masks", masks, {kAny, kAny, kAny, kAny});
  const auto batch = masks.shape(0);
  const auto max_dets = masks.shape(1);
  const auto* det_data = checked_data<float>("dets", dets, {batch, max_dets, 5});
  const auto* count_data = checked_data<int32_t>("num_dets", num_dets, {batch});
  const std::vector<TargetImage> images = checked_images(sizes, scales, batch);
  check(masks.shape(2) >= 1 && masks.shape(2) <= kMaxMaskCells && masks.shape(3) >= 1 &&
            masks.shape(3) <= kMaxMaskCells,
        "masks: expected 1 to " + std::to_string(kMaxMaskCells) + " cells per axis, found " + describe(masks));
  std::vector<std::string> strings;
  {
    const py::gil_scoped_release release;
    strings = encode_masks({images.data(), mask_data, det_data, count_data, batch, max_dets,
                            static_cast<int>(masks.shape(2)), static_cast<int>(masks.shape(3)), threshold, min_score});
  }
  py::list out;
  for (py::ssize_t b = 0; b < batch; ++b) {
    py::list own;
    for (py::ssize_t k = 0; k < max_dets; ++k) own.append(py::bytes(strings[b * max_dets + k]));
    out.append(own);
  }
  return out;
}

py::array_t<uint8_t> cast_masks_binding(const py::array& values) {
  const auto* data = checked_data<float>("values", values, {kAny});
  const int64_t num_values = values.shape(0);
  auto output = new_array<uint8_t>({num_values});
  auto* output_data = output.mutable_data();
  {
    const py::gil_scoped_release release;
    cast_masks(data, num_values, output_data);
  }
  return output;
}

py::tuple select_top_binding(const py::array& scores, int64_t k) {
  constexpr int64_t kMaxScores = 1 << 24;
  const auto* score_data = checked_data<float>("scores", scores, {kAny, kAny});
  const int64_t batch = scores.shape(0);
  const int64_t num_scores = scores.shape(1);
  check(num_scores <= kMaxScores,
        "scores: expected rows of up to " + std::to_string(kMaxScores) + ", found " + describe(scores));
  check(k >= 1 && k <= num_scores, "k: expected 1 to the number of scores, " + std::to_string(num_scores) +
                                       ", found " + std::to_string(k));
  auto values = new_array<float>({batch, k});
  auto indices = new_array<int32_t>({batch, k});
  auto* value_data = values.mutable_data();
  auto* index_data = indices.mutable_data();
  {
    const py::gil_scoped_release release;
    select_top(score_data, batch, num_scores, k, value_data, index_data);
  }
  return py::make_tuple(values, indices);
}

BoxDecoding checked_decoding(const std::vector<float>& means, const std::vector<float>& stds, float max_ratio,
                             bool clip) {
  check(means.size() == 4 && stds.size() == 4, "means, stds: expected 4 numbers each, found " +
                                                   std::to_string(means.size()) + " and " +
                                                   std::to_string(stds.size()));
  check(max_ratio >= 0.f && std::isfinite(max_ratio),
        "max_ratio: expected a finite number of at least 0, found " + std::to_string(max_ratio));
  BoxDecoding decoding{};
  std::copy(means.begin(), means.end(), decoding.means);
  std::copy(stds.begin(), stds.end(), decoding.stds);
  decoding.max_ratio = max_ratio;
  decoding.clip = clip;
  return decoding;
}

py::tuple decode_detections_binding(const py::array& logits, const py::array& deltas, const py::array& proposals,
                                    const py::array& count, const py::array& image_sizes, float max_ratio,
                                    const std::vector<float>& means, const std::vector<float>& stds, bool clip) {
  constexpr py::ssize_t kMaxClasses = 1 << 24;
  const auto* logit_data = checked_data<float>("logits", logits, {kAny, kAny, kAny});
  const auto batch = logits.shape(0);
  const auto num_proposals = logits.shape(1);
  const auto num_classes = logits.shape(2) - 1;
  check(num_classes >= 1 && num_classes <= kMaxClasses,
        "logits: expected 1 to " + std::to_string(kMaxClasses) + " classes and the background, found " +
            describe(logits));
  const auto* delta_data = checked_data<float>("deltas", deltas, {batch, num_proposals, kAny});
  const bool class_agnostic = deltas.shape(2) == 4;
  check(class_agnostic || deltas.shape(2) == 4 * num_classes,
        "deltas: expected 4, or 4 for each of " + std::to_string(num_classes) + " classes, found " + describe(deltas));
  const auto* proposal_data = checked_data<float>("proposals", proposals, {batch, num_proposals, 4});
  const auto* count_data = checked_data<int32_t>("count", count, {batch});
  const auto* size_data = checked_data<float>("image_sizes", image_sizes, {batch, 2});
  const BoxDecoding decoding = checked_decoding(means, stds, max_ratio, clip);
  const auto classes = static_cast<int32_t>(num_classes);
  const DecodeDetectionsInput in{logit_data, delta_data,    proposal_data, count_data,     size_data,
                                 batch,      num_proposals, classes,       class_agnostic, decoding};
  auto boxes = new_array<float>({batch, num_proposals * num_classes, 4});
  auto scores = new_array<float>({batch, num_proposals * num_classes});
  auto* box_data = boxes.mutable_data();
  auto* score_data = scores.mutable_data();
  {
    const py::gil_scoped_release release;
    decode_detections(in, box_data, score_data);
  }
  return py::make_tuple(boxes, scores);
}

TensorLayout checked_layout(const std::string& layout) {
  if (layout == "nchw") return TensorLayout::kNchw;
  if (layout == "nhwc") return TensorLayout::kNhwc;
  if (layout == "nhwc8") return TensorLayout::kNhwc8;
  throw py::value_error("layout: expected 'nchw', 'nhwc' or 'nhwc8', found '" + layout + "'");
}

// The elements of (batch, channels, height, width) maps that are stored in the layout.
const float* checked_maps(const char* name, const py::array& maps, std::array<int64_t, 4> shape, TensorLayout layout) {
  const auto [batch, channels, height, width] = shape;
  const int64_t stored = stored_channels(channels, layout);
  return layout == TensorLayout::kNchw ? checked_data<float>(name, maps, {batch, stored, height, width})
                                       : checked_data<float>(name, maps, {batch, height, width, stored});
}

// Height and width of maps of four axes.
std::pair<int64_t, int64_t> map_size(const py::array& maps, TensorLayout layout) {
  const int first = layout == TensorLayout::kNchw ? 2 : 1;
  return {maps.shape(first), maps.shape(first + 1)};
}

py::array_t<float> select_masks_binding(const py::array& logits, const py::array& labels, int64_t channels,
                                        const std::string& layout_name) {
  const TensorLayout layout = checked_layout(layout_name);
  check(channels >= 1, "channels: expected at least 1, found " + std::to_string(channels));
  const auto* label_data = checked_data<int32_t>("labels", labels, {kAny, kAny});
  const auto batch = labels.shape(0);
  const auto num_masks = labels.shape(1);
  const auto* logit_data = checked_maps("logits", logits, {batch * num_masks, channels, kAny, kAny}, layout);
  const auto [height, width] = map_size(logits, layout);
  auto masks = new_array<float>({batch, num_masks, height, width});
  auto* mask_data = masks.mutable_data();
  {
    const py::gil_scoped_release release;
    select_masks({logit_data, label_data, batch * num_masks, channels, height * width, layout}, mask_data);
  }
  return masks;
}

std::vector<ReferenceProposalLevel> checked_levels(const std::vector<py::array>& logits,
                                                   const std::vector<py::array>& deltas,
                                                   const std::vector<int64_t>& top, int64_t num_anchors,
                                                   py::ssize_t batch, TensorLayout layout) {
  constexpr int64_t kMaxAnchors = 1 << 24;
  check(!logits.empty() && logits.size() == deltas.size() && logits.size() == top.size(),
        "logits, deltas, top: expected one of each per level and at least one level, found " +
            std::to_string(logits.size()) + ", " + std::to_string(deltas.size()) + ", " + std::to_string(top.size()));
  check(num_anchors >= 1, "num_anchors: expected at least 1, found " + std::to_string(num_anchors));
  std::vector<ReferenceProposalLevel> levels;
  int64_t first_prior = 0;
  int64_t first_row = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto* logit_data = checked_maps("logits", logits[i], {batch, num_anchors, kAny, kAny}, layout);
    const auto [height, width] = map_size(logits[i], layout);
    const auto* delta_data = checked_maps("deltas", deltas[i], {batch, num_anchors * kDeltas, height, width}, layout);
    const int64_t count = num_anchors * height * width;
    check(count >= 1 && count <= kMaxAnchors, "logits: expected levels of 1 to " + std::to_string(kMaxAnchors) +
                                                  " anchors, found " + describe(logits[i]));
    check(top[i] >= 1, "top: expected numbers of at least 1, found " + std::to_string(top[i]));
    levels.push_back({logit_data, delta_data, height, width, top[i], first_prior, first_row});
    first_prior += count;
    first_row += top[i];
  }
  return levels;
}

py::tuple decode_proposals_binding(const std::vector<py::array>& logits, const std::vector<py::array>& deltas,
                                   const py::array& priors, const py::array& image_sizes,
                                   const std::vector<int64_t>& top, int64_t num_anchors, float max_ratio,
                                   const std::vector<float>& means, const std::vector<float>& stds, bool clip,
                                   float min_size, const std::string& layout_name) {
  const TensorLayout layout = checked_layout(layout_name);
  const auto* size_data = checked_data<float>("image_sizes", image_sizes, {kAny, 2});
  const auto batch = image_sizes.shape(0);
  DecodeProposalsInput in{};
  in.levels = checked_levels(logits, deltas, top, num_anchors, batch, layout);
  const ReferenceProposalLevel& last = in.levels.back();
  const int64_t num_priors = last.first_prior + num_anchors * last.height * last.width;
  in.batch = batch;
  in.num_anchors = num_anchors;
  in.layout = layout;
  in.priors = checked_data<float>("priors", priors, {num_priors, 4});
  in.image_sizes = size_data;
  in.decoding = checked_decoding(means, stds, max_ratio, clip);
  in.min_size = min_size;
  auto boxes = new_array<float>({batch, last.first_row + last.top, 4});
  auto scores = new_array<float>({batch, last.first_row + last.top});
  auto* box_data = boxes.mutable_data();
  auto* score_data = scores.mutable_data();
  {
    const py::gil_scoped_release release;
    decode_proposals(in, box_data, score_data);
  }
  return py::make_tuple(boxes, scores);
}

}  // namespace
}  // namespace maskrcnn

PYBIND11_MODULE(_reference, module) {
  namespace py = pybind11;
  using py::arg;
  module.doc() = "CPU reference of the operators. Shapes, dtypes, units and sources: plugins/README.md.";
  module.def("nms", &maskrcnn::nms_binding, arg("boxes"), arg("scores"), arg("iou_threshold"), arg("offset") = 0,
             R"(Return the indices of the boxes that greedy NMS keeps, best score first: (K,) int64.

boxes: (M, 4) float32 [x1, y1, x2, y2] in px. scores: (M,) float32. offset: 0, or 1 where x2 and y2 are the last
pixel inside. A box goes if its IoU with a kept one is above iou_threshold. Equal scores keep their order; NaN scores
sort last. M = 0 gives (0,). ValueError names the argument that has another shape or dtype.

Source: mmcv/ops/csrc/pytorch/cpu/nms.cpp, which sorts NaN scores first.)");
  module.def("grouped_nms", &maskrcnn::grouped_nms_binding, arg("boxes"), arg("scores"), arg("groups"),
             arg("iou_threshold"), arg("score_threshold"), arg("max_output"),
             R"(Return (indices, count) of greedy NMS within groups: (B, max_output) int32 padded with -1, (B,) int32.

boxes: (B, M, 4) float32 [x1, y1, x2, y2] in px. scores: (B, M) float32. groups: (B, M) int32, any ids. Only scores
above score_threshold take part (NaN does not), and only boxes of one group suppress each other. Indices are sorted by
descending score, then ascending index. ValueError names the argument that has another shape or dtype.)");
  module.def("roi_align_forward", &maskrcnn::roi_align_forward_binding, arg("features"), arg("rois"),
             arg("output_height"), arg("output_width"), arg("spatial_scale") = 1.0, arg("sampling_ratio") = 0,
             arg("mode") = "avg", arg("aligned") = true,
             R"(Return (out, argmax_y, argmax_x), each (R, C, output_height, output_width) float32; the last two
(0,) in mode 'avg', otherwise the position of each maximum in feature px, -1 where there is none.

features: (N, C, H, W) float32. rois: (R, 5) float32, [batch_index, x1, y1, x2, y2] in input px. spatial_scale: feature
px per input px. sampling_ratio: samples per bin and axis, at most 512; 0: adaptive. An RoI whose batch index is outside
[0, N) or that has a NaN coordinate gives zeros. ValueError names the argument that has another shape, dtype or range.

Source: mmcv/ops/csrc/pytorch/cpu/roi_align.cpp.)");
  module.def("roi_align_backward", &maskrcnn::roi_align_backward_binding, arg("grad_output"), arg("rois"),
             arg("argmax_y"), arg("argmax_x"), arg("batch"), arg("channels"), arg("height"), arg("width"),
             arg("spatial_scale") = 1.0, arg("sampling_ratio") = 0, arg("mode") = "avg", arg("aligned") = true,
             R"(Return the gradient of roi_align_forward's features: (batch, channels, height, width) float32.

grad_output: (R, channels, output_height, output_width) float32. rois, and the other attributes, as in the forward call.
argmax_y, argmax_x: what the forward call returned; unused in mode 'avg'. ValueError names the argument that has another
shape, dtype or range.)");
  module.def("multi_level_roi_align", &maskrcnn::multi_level_roi_align_binding, arg("features"), arg("rois"),
             arg("output_height"), arg("output_width"), arg("spatial_scales"), arg("finest_scale") = 56.f,
             arg("sampling_ratio") = 0, arg("mode") = "avg", arg("aligned") = true,
             R"(Return RoIAlign of each RoI on its own pyramid level: (R, C, output_height, output_width) float32.

features: list of (N, C, H_i, W_i) float32, finest first. spatial_scales: one per level. finest_scale: px; an RoI of
side s is read from level floor(log2(s / finest_scale + 1e-6)), clamped to the levels. The rest is as in
roi_align_forward.

Source: mmdet's SingleRoIExtractor.)");
  module.def("paste_masks", &maskrcnn::paste_masks_binding, arg("masks"), arg("boxes"), arg("height"), arg("width"),
             arg("threshold") = 0.5f,
             R"(Return masks pasted into images: (N, height, width) uint8, 1 where the probability >= threshold.

masks: (N, h, w) float32 probabilities. boxes: (N, 4) float32 [x1, y1, x2, y2] in image px. threshold: 0 to 1. Pixels
more than one px outside the box are 0, as are those where box or mask is NaN. ValueError names the argument that has
another shape, dtype or range.

Source: mmdet's _do_paste_mask with skip_empty=True.)");
  module.def("prepare_images", &maskrcnn::prepare_images_binding, arg("images"), arg("sizes"), arg("height"),
             arg("width"), arg("tables"), arg("reverse_channels"), arg("pad_value") = 0.f,
             R"(Return images resized, normalised, padded with pad_value and stacked: (B, 3, height, width) float32.

images: list of (H_i, W_i, 3) uint8, BGR. sizes: list of (height, width) in px, what each is resized to, within the
output's. tables: (3, 256) float32, the normalised value of each value of a pixel, per output channel. reverse_channels:
output channel 0 is the image's channel 2. No images give (0, 3, height, width). ValueError names the argument that has
another shape, dtype or range.

Source: cv2.resize(INTER_LINEAR), OpenCV's generic path, bit for bit.)");
  module.def("encode_masks", &maskrcnn::encode_masks_binding, arg("masks"), arg("dets"), arg("num_dets"),
             arg("sizes"), arg("scales"), arg("threshold") = 0.5f,
             arg("min_score") = -std::numeric_limits<float>::infinity(),
             R"(Return each mask's counts as COCO compresses them, pasted at its image's own size: B lists of K bytes.

masks: (B, K, h, w) float32 probabilities, h and w up to 1024. dets: (B, K, 5) float32, [x1, y1, x2, y2, score] in
network px. num_dets: (B,) int32. sizes: (B, 2) int32, the target images' heights and widths in px. scales: (B, 2)
float32, network px per target px in x and in y. A pixel is set where the probability is at least threshold. b'' past
num_dets, and where the score is not at least min_score; no mask's counts are that. ValueError names the argument that
has another shape, dtype or range.

Source: mmdet's _do_paste_mask with skip_empty=True; pycocotools' rleEncode and rleToString.)");
  module.def("cast_masks", &maskrcnn::cast_masks_binding, arg("values"),
             R"(Return float32 values as uint8, rounded towards zero: (N,).

values: (N,) float32. Below 0 and NaN give 0, above 255 gives 255. ValueError where it has another shape or dtype.)");
  module.def("select_top", &maskrcnn::select_top_binding, arg("scores"), arg("k"),
             R"(Return (values, indices) of the k best scores of each row: (B, k) float32, (B, k) int32.

scores: (B, N) float32, k <= N <= 2^24. Best first, equal scores by ascending index; 0 and -0 are equal. NaN counts as
lowest and comes last, by index. ValueError names the argument that has another shape, dtype or range.

Source: ONNX TopK, largest and sorted; there, the place of NaN is not defined.)");
  module.def("decode_detections", &maskrcnn::decode_detections_binding, arg("logits"), arg("deltas"),
             arg("proposals"), arg("count"), arg("image_sizes"), arg("max_ratio"),
             arg("means") = std::vector<float>(4, 0.f), arg("stds") = std::vector<float>(4, 1.f), arg("clip") = true,
             R"(Return every class's box and score of every proposal: (B, P * C, 4) float32, (B, P * C) float32.

logits: (B, P, C + 1) float32, the background last. deltas: (B, P, 4 * C) float32; with (B, P, 4) all classes have one
box. proposals: (B, P, 4) float32 [x1, y1, x2, y2] in px. count: (B,) int32, the rows that are real. image_sizes: (B, 2)
float32, height and width in px. means, stds: of the deltas. max_ratio: the largest change of log width and height.
clip: to the image. Candidate p * C + c is proposal p as class c; its score is softmax's, -1 from row count on, and NaN
where a logit of the proposal is. ValueError names the argument that has another shape, dtype or range.

Source: mmdet's BBoxHead and delta2bbox.)");
  module.def("select_masks", &maskrcnn::select_masks_binding, arg("logits"), arg("labels"), arg("channels"),
             arg("layout") = "nchw",
             R"(Return the probabilities of each detection's own mask: (B, K, h, w) float32.

logits: (B * K, channels, h, w) float32; (B * K, h, w, channels) in layout 'nhwc', the same with channels rounded up to
a multiple of 8 in 'nhwc8'. labels: (B, K) int32: the channel; -1 gives zeros, one too large means the last, so that one
channel serves every class. ValueError names the argument that has another shape, dtype or range.

Source: mmdet's FCNMaskHead.)");
  module.def("decode_proposals", &maskrcnn::decode_proposals_binding, arg("logits"), arg("deltas"), arg("priors"),
             arg("image_sizes"), arg("top"), arg("num_anchors"), arg("max_ratio"),
             arg("means") = std::vector<float>(4, 0.f), arg("stds") = std::vector<float>(4, 1.f), arg("clip") = true,
             arg("min_size") = -1.f, arg("layout") = "nchw",
             R"(Return the best anchors of every level as boxes: (B, M, 4) float32, (B, M) float32, M the sum of top.

logits, deltas: lists of L (B, A, H_l, W_l) and (B, 4 * A, H_l, W_l) float32, A = num_anchors; (B, H_l, W_l, channels)
in layout 'nhwc', the same with channels rounded up to a multiple of 8 in 'nhwc8'. priors: (N, 4) float32
[x1, y1, x2, y2] in px, level after level, in a level by y, x and anchor. image_sizes: (B, 2) float32, height and width
in px. top: L numbers of rows. means, stds: of the deltas. max_ratio: the largest change of log width and height.
clip: to the image. A level's rows are its best scores, sigmoid(logit), equal ones by anchor, NaN last. The score is -1
where a level has no more anchors, and there the box is 0; and where a side of the box is not longer than min_size px,
if that is not below 0. ValueError names the argument that has another shape, dtype or range.

Source: mmdet's RPNHead and delta2bbox.)");
}
