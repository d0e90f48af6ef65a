// What happens to an image between its pixels and the network: the steps of runtime/transforms.py, to the last bit.
// Sizes are known without pixels. What is not repeated here is refused by name when the model is opened.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "canvas.h"

namespace maskrcnn {

// Of an image on its way to the network: 3 GB as float32.
constexpr std::int64_t kMaxPixels = std::int64_t{1} << 28;

struct Point {
  double x;
  double y;
};

class Step {
 public:
  virtual ~Step() = default;
  virtual const char* name() const = 0;

  // Of an image of that size after the step.
  virtual Size size(const Size& before) const { return before; }
  // mmdet's, of a step that resizes.
  virtual std::optional<Point> scale_factor(const Size&) const { return std::nullopt; }
  // Where the first pixel of an image of that size lies after the step, px.
  virtual Point offset(const Size&) const { return {0, 0}; }
  virtual void apply(Canvas& canvas) const = 0;

  // What of it this library does not repeat, as "expected ..., found ..."; empty: nothing. is_float: of what it gets.
  virtual std::string refusal(bool is_float) const {
    static_cast<void>(is_float);
    return "";
  }
  virtual bool makes_float() const { return false; }
};

using Steps = std::vector<std::unique_ptr<const Step>>;

// How a resize samples.
struct Sampling {
  std::string interpolation = "bilinear";
  std::string backend = "cv2";
};

class ResizeStep : public Step {
 public:
  explicit ResizeStep(Sampling sampling) : sampling_(std::move(sampling)) {}
  std::optional<Point> scale_factor(const Size& before) const override;
  void apply(Canvas& canvas) const override;
  std::string refusal(bool is_float) const override;

 private:
  Sampling sampling_;
};

class Resize : public ResizeStep {
 public:
  struct Rule {
    std::optional<Point> scale;    // (width, height) px
    std::optional<Point> factors;  // by which the image's own size makes the scale; one of the two
    bool keep_ratio = false;
    bool floor = false;
  };
  Resize(const Rule& rule, Sampling sampling) : ResizeStep(std::move(sampling)), rule_(rule) {}
  const char* name() const override { return "resize"; }
  Size size(const Size& before) const override;

 private:
  Rule rule_;
};

class ResizeShortestEdge : public ResizeStep {
 public:
  struct Rule {
    double scale;     // of the shorter edge, px
    double max_size;  // of the longer edge, px; 0: any
    bool keep_ratio = false;
    bool floor = false;
  };
  ResizeShortestEdge(const Rule& rule, Sampling sampling) : ResizeStep(std::move(sampling)), rule_(rule) {}
  const char* name() const override { return "resize_shortest_edge"; }
  Size size(const Size& before) const override;

 private:
  Rule rule_;
};

class FixShapeResize : public ResizeStep {
 public:
  FixShapeResize(const Size& shape, bool keep_ratio, Sampling sampling)
      : ResizeStep(std::move(sampling)), shape_(shape), keep_ratio_(keep_ratio) {}
  const char* name() const override { return "fix_shape_resize"; }
  Size size(const Size& before) const override;
  std::optional<Point> scale_factor(const Size& before) const override;

 private:
  double factor(const Size& before) const;
  Size shape_;
  bool keep_ratio_;
};

class Fit : public ResizeStep {
 public:
  enum class Rounding { kHalfUp, kHalfEven, kFloor };
  Fit(const Size& box, Rounding rounding, Sampling sampling)
      : ResizeStep(std::move(sampling)), box_(box), rounding_(rounding) {}
  const char* name() const override { return "fit"; }
  Size size(const Size& before) const override;

 private:
  Size box_;
  Rounding rounding_;
};

using PixelValue = std::array<double, 4>;  // of as many channels as there are

enum class PaddingMode { kConstant, kEdge, kReflect, kSymmetric };

class Pad : public Step {
 public:
  struct Rule {
    std::optional<Size> shape;
    double size_divisor = 0;  // 0: none
    bool to_square = false;
    PixelValue value{};
    PaddingMode mode = PaddingMode::kConstant;
  };
  explicit Pad(const Rule& rule) : rule_(rule) {}
  const char* name() const override { return "pad"; }
  Size size(const Size& before) const override;
  void apply(Canvas& canvas) const override;
  const Rule& rule() const { return rule_; }

 private:
  Rule rule_;
};

class CenterPad : public Step {
 public:
  CenterPad(const Size& box, const PixelValue& value) : box_(box), value_(value) {}
  const char* name() const override { return "center_pad"; }
  Size size(const Size& before) const override;
  Point offset(const Size& before) const override;
  void apply(Canvas& canvas) const override;

 private:
  Size box_;
  PixelValue value_;
};

class Normalize : public Step {
 public:
  Normalize(std::vector<double> mean, std::vector<double> std, bool to_rgb)
      : mean_(std::move(mean)), std_(std::move(std)), to_rgb_(to_rgb) {}
  const char* name() const override { return "normalize"; }
  void apply(Canvas& canvas) const override;
  bool makes_float() const override { return true; }

 private:
  std::vector<double> mean_, std_;
  bool to_rgb_;
};

class CenterCrop : public Step {
 public:
  CenterCrop(const Size& crop, std::optional<Pad::Rule> pad) : crop_(crop), pad_(std::move(pad)) {}
  const char* name() const override { return "center_crop"; }
  Size size(const Size& before) const override;
  void apply(Canvas& canvas) const override;

 private:
  struct Window {
    std::optional<Size> padded;
    std::int64_t top, bottom, left, right;
  };
  Window window(const Size& before) const;
  Size crop_;
  std::optional<Pad::Rule> pad_;
};

// Of an image after all steps: mmdet's img_shape. kInvalid: more pixels than memory is to be taken for.
Size final_size(Size size, const Steps& steps);
// mmdet's, the last resize's alone.
Point final_scale_factor(Size size, const Steps& steps);
// Where an image's first pixel lies after all steps.
Point final_offset(Size size, const Steps& steps);

}  // namespace maskrcnn
