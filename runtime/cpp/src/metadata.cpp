#include "metadata.h"

#include <algorithm>
#include <cmath>

#include "json_values.h"

namespace maskrcnn {
namespace {

constexpr int kFormat = 2;

Sampling sampling_of(const Fields& fields) {
  Sampling found;
  if (fields.has("backend")) found.backend = choice("backend", fields["backend"], {"cv2", "pillow"});
  if (!fields.has("interpolation")) return found;
  const Json& value = fields["interpolation"];
  found.interpolation =
      found.backend == "cv2"
          ? choice("interpolation", value, {"nearest", "bilinear", "bicubic", "area", "lanczos"})
          : choice("interpolation", value, {"nearest", "bilinear", "bicubic", "box", "lanczos", "hamming"});
  return found;
}

using StepPointer = std::unique_ptr<const Step>;

StepPointer resize_from(const Json& object) {
  const Fields fields(object, {"step", "scale", "factors", "keep_ratio", "floor", "interpolation", "backend"}, {});
  if (fields.has("scale") == fields.has("factors")) invalid("resize: expected either a scale or factors");
  Resize::Rule rule;
  if (fields.has("scale")) rule.scale = pair("scale", fields["scale"]);
  if (fields.has("factors")) rule.factors = pair("factors", fields["factors"]);
  rule.keep_ratio = fields.flag("keep_ratio", false);
  rule.floor = fields.flag("floor", false);
  return std::make_unique<Resize>(rule, sampling_of(fields));
}

double at_least_one(const char* name, const Json& value) {
  if (!is_number(value) || value.get<double>() < 1) invalid(name, ": expected 1 or more, found ", shown(value));
  return value.get<double>();
}

StepPointer shortest_edge_from(const Json& object) {
  const Fields fields(object, {"step", "scale", "max_size", "keep_ratio", "floor", "interpolation", "backend"},
                      {"scale"});
  ResizeShortestEdge::Rule rule{};
  rule.scale = at_least_one("scale", fields["scale"]);
  if (fields.has("max_size")) rule.max_size = at_least_one("max_size", fields["max_size"]);
  rule.keep_ratio = fields.flag("keep_ratio", false);
  rule.floor = fields.flag("floor", false);
  return std::make_unique<ResizeShortestEdge>(rule, sampling_of(fields));
}

StepPointer fix_shape_from(const Json& object) {
  const Fields fields(object, {"step", "scale", "keep_ratio", "interpolation", "backend"}, {"scale"});
  return std::make_unique<FixShapeResize>(whole_pair("scale", fields["scale"]), fields.flag("keep_ratio", false),
                                          sampling_of(fields));
}

// (height, width), where the other sizes are (width, height).
Size box_of(const Json& values) {
  const Size swapped = whole_pair("box", values);
  return {swapped.width, swapped.height};
}

StepPointer fit_from(const Json& object) {
  const Fields fields(object, {"step", "box", "interpolation", "backend", "rounding"}, {"box"});
  auto rounding = Fit::Rounding::kHalfUp;
  if (fields.has("rounding")) {
    const std::string& name = choice("rounding", fields["rounding"], {"half_up", "half_even", "floor"});
    if (name == "half_even") rounding = Fit::Rounding::kHalfEven;
    if (name == "floor") rounding = Fit::Rounding::kFloor;
  }
  return std::make_unique<Fit>(box_of(fields["box"]), rounding, sampling_of(fields));
}

PixelValue pixel_value(const Json& value) {
  PixelValue found{};
  const Json values = value.is_array() ? value : Json::array({value});
  if (values.empty() || values.size() > found.size() || !std::all_of(values.begin(), values.end(), is_number)) {
    invalid("value: expected 1 to 4 numbers, found ", shown(value));
  }
  std::transform(values.begin(), values.end(), found.begin(), [](const Json& v) { return v.get<double>(); });
  return found;
}

Pad::Rule pad_rule(const Json& object) {
  const Fields fields(object, {"step", "shape", "size_divisor", "to_square", "value", "mode"}, {});
  Pad::Rule rule;
  if (fields.has("mode")) {
    const std::string& mode = choice("mode", fields["mode"], {"constant", "edge", "reflect", "symmetric"});
    rule.mode = mode == "constant"  ? PaddingMode::kConstant
                : mode == "edge"    ? PaddingMode::kEdge
                : mode == "reflect" ? PaddingMode::kReflect
                                    : PaddingMode::kSymmetric;
  }
  rule.to_square = fields.flag("to_square", false);
  if (fields.has("shape")) rule.shape = whole_pair("shape", fields["shape"]);
  if (fields.has("size_divisor")) rule.size_divisor = at_least_one("size_divisor", fields["size_divisor"]);
  if (!rule.shape && rule.size_divisor == 0 && !rule.to_square) {
    invalid("pad: expected a shape, a divisor or a square");
  }
  if (fields.has("value")) rule.value = pixel_value(fields["value"]);
  return rule;
}

StepPointer pad_from(const Json& object) { return std::make_unique<Pad>(pad_rule(object)); }

StepPointer center_pad_from(const Json& object) {
  const Fields fields(object, {"step", "box", "value"}, {"box"});
  const PixelValue value = fields.has("value") ? pixel_value(fields["value"]) : PixelValue{};
  return std::make_unique<CenterPad>(box_of(fields["box"]), value);
}

void check_normalisation(const std::vector<double>& std, const Json& found) {
  if (std::count(std.begin(), std.end(), 0.0) > 0) {
    invalid("std: expected numbers other than 0, found ", shown_tuple(found));
  }
}

StepPointer normalize_from(const Json& object) {
  const Fields fields(object, {"step", "mean", "std", "to_rgb"}, {"mean", "std"});
  auto mean = numbers("mean", fields["mean"]), std = numbers("std", fields["std"]);
  if (mean.size() != std.size()) {
    invalid("mean, std: expected as many numbers of each, found ", shown_tuple(fields["mean"]), " and ",
            shown_tuple(fields["std"]));
  }
  check_normalisation(std, fields["std"]);
  return std::make_unique<Normalize>(std::move(mean), std::move(std), fields.flag("to_rgb", true));
}

StepPointer center_crop_from(const Json& object) {
  const Fields fields(object, {"step", "crop", "pad"}, {"crop"});
  std::optional<Pad::Rule> pad;
  if (fields.has("pad")) pad = placed("pad: ", [&] { return pad_rule(fields["pad"]); });
  return std::make_unique<CenterCrop>(whole_pair("crop", fields["crop"]), pad);
}

struct Reader {
  const char* name;
  StepPointer (*read)(const Json&);
};

constexpr Reader kReaders[] = {
    {"resize", resize_from},
    {"resize_shortest_edge", shortest_edge_from},
    {"fix_shape_resize", fix_shape_from},
    {"fit", fit_from},
    {"pad", pad_from},
    {"center_pad", center_pad_from},
    {"normalize", normalize_from},
    {"center_crop", center_crop_from},
};

StepPointer step_from(const Json& object, const std::string& place) {
  const Json name = object.is_object() ? object.value("step", Json()) : object;
  if (name.is_string() && object.is_object()) {
    for (const Reader& reader : kReaders) {
      if (name != reader.name) continue;
      return placed(place + ", " + reader.name + ": ", [&] { return reader.read(object); });
    }
  }
  std::string known;
  for (const Reader& reader : kReaders) known += (known.empty() ? "" : ", ") + std::string(reader.name);
  invalid(place, ": expected one of the steps ", known, ", found ", shown(name));
}

// What the steps ask for that this library does not repeat.
void check_repeated(const Metadata& metadata) {
  if (metadata.input != "float32") {
    invalid("input: expected float32, found '", metadata.input,
            "': the C++ runtime does not fill it; take the file that it was converted from, or run it from Python");
  }
  const int channels = metadata.loads_grey ? 1 : 3;
  if (!metadata.loads_unchanged && metadata.info.channels != channels) {
    invalid("mean, std: expected ", channels, " of each for images read as ", metadata.info.color_type, ", found ",
            metadata.info.channels);
  }
  bool is_float = metadata.loads_float;
  for (std::size_t i = 0; i < metadata.steps.size(); ++i) {
    const Step& step = *metadata.steps[i];
    const std::string refusal = step.refusal(is_float);
    if (!refusal.empty()) {
      invalid("steps[", i, "], ", step.name(), ": ", refusal,
              ": the C++ runtime does not repeat it; run the model from Python");
    }
    is_float = is_float || step.makes_float();
  }
}

void read_load(const Json& object, Metadata& metadata) {
  const Fields fields(object, {"color_type", "decoder", "to_float32"}, {});
  metadata.info.color_type = "color";
  metadata.info.decoder = "cv2";
  if (fields.has("color_type")) {
    metadata.info.color_type =
        choice("color_type", fields["color_type"],
               {"color", "grayscale", "unchanged", "color_ignore_orientation", "grayscale_ignore_orientation"});
  }
  if (fields.has("decoder")) metadata.info.decoder = choice("decoder", fields["decoder"], {"cv2", "pillow"});
  metadata.loads_float = fields.flag("to_float32", false);
  metadata.loads_grey = metadata.info.color_type.rfind("grayscale", 0) == 0;
  metadata.loads_unchanged = metadata.info.color_type == "unchanged";
}

bool are_names(const Json& values) {
  return std::all_of(values.begin(), values.end(), [](const Json& value) { return value.is_string(); });
}

void read_classes(const Json& data, Metadata& metadata) {
  const Json& names = list("classes", data.at("classes"));
  if (names.empty() || !are_names(names)) {
    invalid("classes: expected one name or more, found ", shown_tuple(names));
  }
  metadata.info.classes = names.get<std::vector<std::string>>();
}

void read_keypoints(const Json& data, Metadata& metadata) {
  if (data.contains("keypoints")) {
    const Json& names = list("keypoints", data.at("keypoints"));
    if (!are_names(names)) invalid("keypoints: expected names, found ", shown_tuple(names));
    metadata.info.keypoints = names.get<std::vector<std::string>>();
  }
  const auto count = static_cast<std::int64_t>(metadata.info.keypoints.size());
  const Json lines = list("skeleton", data.value("skeleton", Json::array()));
  for (const Json& line : lines) list("skeleton", line);
  const auto is_index = [&](const Json& v) { return v.is_number_integer() && v >= 0 && v < count; };
  const auto is_line = [&](const Json& v) { return v.size() == 2 && is_index(v[0]) && is_index(v[1]); };
  if (!std::all_of(lines.begin(), lines.end(), is_line)) {
    invalid("skeleton: expected pairs of indices of the ", count, " key points, found ", shown_tuple(lines));
  }
  for (const Json& line : lines) metadata.info.skeleton.emplace_back(line[0].get<int>(), line[1].get<int>());
  if (data.contains("clip")) metadata.clip = boolean("clip", data.at("clip"));
}

void read_channels(const Json& data, Metadata& metadata) {
  const Json &mean = list("mean", data.at("mean")), &std = list("std", data.at("std"));
  const std::string found = ", found " + shown_tuple(mean) + " and " + shown_tuple(std);
  if (mean.empty() || mean.size() > kMaxChannels || mean.size() != std.size()) {
    invalid("mean, std: expected as many numbers of each, 1 to ", kMaxChannels, found);
  }
  if (!std::all_of(mean.begin(), mean.end(), is_number) || !std::all_of(std.begin(), std.end(), is_number)) {
    invalid("mean, std: expected finite numbers", found);
  }
  metadata.mean = mean.get<std::vector<double>>();
  metadata.std = std.get<std::vector<double>>();
  check_normalisation(metadata.std, std);
  metadata.info.channels = static_cast<int>(metadata.mean.size());
  const Json& order = data.at("color_order");
  if (order != "rgb" && order != "bgr") invalid("color_order: expected rgb or bgr, found ", shown(order));
  metadata.is_rgb = order == "rgb";
  if (metadata.is_rgb && metadata.info.channels != 3) {
    invalid("color_order: expected bgr of ", metadata.info.channels, " channels, found rgb");
  }
  const Json pad = data.value("pad_value", Json(0.0));
  if (!is_number(pad)) invalid("pad_value: expected a finite number, found ", shown(pad));
  metadata.pad_value = pad.get<double>();
}

void read_size(const Json& data, Metadata& metadata) {
  const Json& size = data.at("size");
  const auto is_edge = [](const Json& value) { return is_whole(value, kMaxSize); };
  if (!size.is_null()) {
    if (list("size", size).size() != 2 || !std::all_of(size.begin(), size.end(), is_edge)) {
      invalid("size: expected 2 numbers of 1 or more, up to ", kMaxSize, ", found ", shown_tuple(size));
    }
    metadata.info.height = size[0].get<int>();
    metadata.info.width = size[1].get<int>();
  }
  const Json& divisor = data.at("size_divisor");
  if (!is_edge(divisor)) {
    invalid("size_divisor: expected at least 1, up to ", kMaxSize, ", found ", shown(divisor));
  }
  metadata.info.size_divisor = divisor.get<int>();
}

void read_masks(const Json& data, Metadata& metadata) {
  metadata.info.masks = choice("masks", data.at("masks"), {"crop", "full", "grid", "none"});
  metadata.mask_mode = metadata.info.masks == "crop"   ? MaskMode::kCrop
                       : metadata.info.masks == "full" ? MaskMode::kFull
                       : metadata.info.masks == "grid" ? MaskMode::kGrid
                                                       : MaskMode::kNone;
  const Json& threshold = data.at("mask_threshold");
  if (!is_number(threshold) || threshold < 0 || threshold > 1) {
    invalid("mask_threshold: expected 0 to 1, found ", shown(threshold));
  }
  metadata.mask_threshold = threshold.get<double>();
  metadata.info.mask_threshold = static_cast<float>(metadata.mask_threshold);
  const Json& score = data.at("score_threshold");
  if (!is_number(score)) invalid("score_threshold: expected a finite number, found ", shown(score));
  metadata.info.score_threshold = score.get<float>();
  const Json& rows = data.at("max_per_img");
  if (!is_whole(rows, kMaxRows)) {
    invalid("max_per_img: expected at least 1, up to ", kMaxRows, ", found ", shown(rows));
  }
  metadata.info.max_detections = rows.get<int>();
}

Metadata metadata_from(const Json& data) {
  Metadata metadata;
  const Json& steps = list("steps", data.at("steps"));
  for (std::size_t i = 0; i < steps.size(); ++i)
    metadata.steps.push_back(step_from(steps[i], joined("steps[", i, "]")));
  placed("load: ", [&] {
    read_load(data.value("load", Json::object()), metadata);
    return true;
  });
  if (data.contains("input")) {
    metadata.input = choice("input", data.at("input"), {"float32", "uint8", "uint8_nhwc"});
  }
  read_classes(data, metadata);
  read_masks(data, metadata);
  read_keypoints(data, metadata);
  read_channels(data, metadata);
  read_size(data, metadata);
  const Json config = data.value("config", Json(""));
  if (config.is_string()) metadata.info.config = config.get<std::string>();
  return metadata;
}

// A resize rule of format 1, whose size is (height, width), as a step.
Json step_of_rule(const Json& rule) {
  const Fields fields(rule, {"rule", "size"}, {"rule", "size"});
  const std::string& name = choice("rule", fields["rule"], {"fit", "keep_ratio", "stretch"});
  const Point size = pair("size", fields["size"]);
  if (name == "fit") return {{"step", "fit"}, {"box", fields["size"]}};
  return {{"step", "resize"}, {"scale", {size.y, size.x}}, {"keep_ratio", name == "keep_ratio"}};
}

constexpr const char* kAgain = "; export the model again";

void check_fields(const Json& data, const std::string& place) {
  std::string missing;
  for (const char* name : {"classes", "color_order", "mask_threshold", "masks", "max_per_img", "mean",
                           "score_threshold", "size", "size_divisor", "std", "steps"}) {
    if (!data.contains(name)) missing += (missing.empty() ? "" : ", ") + std::string(name);
  }
  if (!missing.empty()) invalid(place, "model metadata: expected the fields ", missing, ", found none of them", kAgain);
}

}  // namespace

Metadata metadata_from_json(const std::string& text, const std::string& place) {
  Json data = placed(
      place + "model metadata under 'maskrcnn': ", [&] { return parsed(text); }, kAgain);
  const Json format = data.is_object() ? data.value("format", Json()) : Json();
  if (!format.is_number_integer() || format < 1 || format > kFormat) {
    invalid(place, "model metadata: expected format 1 or 2, found ", data.is_object() ? shown(format) : type_of(data),
            "; export the model again with this version of `python -m export.maskrcnn`");
  }
  const std::string malformed = place + "model metadata: malformed field (";
  const std::string again = std::string(")") + kAgain;
  if (format == 1) {
    if (!data.contains("resize")) {
      invalid(place, "model metadata: expected the fields resize, found none of them", kAgain);
    }
    data["steps"] = Json::array({placed(
        malformed + "resize: ", [&] { return step_of_rule(data["resize"]); }, again)});
  }
  check_fields(data, place);
  Metadata metadata = placed(
      malformed, [&] { return metadata_from(data); }, again);
  placed(place + "model metadata, ", [&] {
    check_repeated(metadata);
    return true;
  });
  return metadata;
}

Size network_size(const Size& image, const Metadata& metadata) {
  const Size found = final_size(image, metadata.steps);
  const Size size = metadata.size();
  if (metadata.has_size() && (found.height > size.height || found.width > size.width)) {
    invalid("image of ", image.height, "x", image.width,
            " px (height x width): expected to fit into the model's fixed ", size.height, "x", size.width,
            " after its test pipeline, found ", found.height, "x", found.width,
            "; export the model without --size, or with one that holds it");
  }
  return found;
}

Size padded_size(const std::vector<Size>& sizes, const Metadata& metadata) {
  if (metadata.has_size()) return metadata.size();
  const std::int64_t divisor = metadata.info.size_divisor;
  Size most{1, 1};
  for (const Size& size : sizes) most = {std::max(most.height, size.height), std::max(most.width, size.width)};
  const auto multiple = [&](std::int64_t length) { return (length + divisor - 1) / divisor * divisor; };
  return {multiple(most.height), multiple(most.width)};
}

}  // namespace maskrcnn
