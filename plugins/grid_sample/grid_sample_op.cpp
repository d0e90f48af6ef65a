#include "plugins/grid_sample/grid_sample_op.h"

#include <stdexcept>

#include "plugins/grid_sample/grid_sample_kernel.h"

namespace maskrcnn {
namespace {

constexpr const char* kName = "grid_sampler";

enum Input { kImage, kGrid, kNumInputs };

class GridSamplerOp : public Op {
 public:
  explicit GridSamplerOp(Attributes attributes)
      : Op(std::move(attributes)),
        interpolation_(static_cast<Interpolation>(this->attributes().integer("interpolation_mode", 0, 2))),
        padding_(static_cast<Padding>(this->attributes().integer("padding_mode", 0, 2))),
        align_corners_(this->attributes().flag("align_corners")) {}

  int num_inputs() const override { return kNumInputs; }
  int num_outputs() const override { return 1; }

  void check_shapes(const TensorList& tensors) const override {
    const TensorInfo& image = tensors.input(kImage);
    const TensorInfo& grid = tensors.input(kGrid);
    if (image.rank == 5) {
      expect_shape(kName, "input", image, {kUnknown, kUnknown, kUnknown, kUnknown, kUnknown});
      expect_shape(kName, "grid", grid, {image.dims[0], kUnknown, kUnknown, kUnknown, 3});
      if (interpolation_ == Interpolation::kBicubic) {
        throw std::invalid_argument(
            "grid_sampler: expected interpolation_mode 0 (bilinear) or 1 (nearest) for a 5-D input, found 2 (bicubic). "
            "torch has no such mode either; export with another one");
      }
    } else {
      expect_shape(kName, "input", image, {kUnknown, kUnknown, kUnknown, kUnknown});
      expect_shape(kName, "grid", grid, {image.dims[0], kUnknown, kUnknown, 2});
    }
  }

  void check_types(const DType* inputs) const override {
    expect_dtype(kName, "input", inputs[kImage], {DType::kFloat, DType::kHalf});
    expect_dtype(kName, "grid", inputs[kGrid], {DType::kFloat, DType::kHalf});
  }

  std::vector<Dim> output_shape(int, const TensorList& tensors) const override {
    std::vector<Dim> shape{Dim::of(kImage, 0), Dim::of(kImage, 1)};
    for (int axis = 1; axis + 1 < tensors.input(kGrid).rank; ++axis) shape.push_back(Dim::of(kGrid, axis));
    return shape;
  }

  DType output_type(int, const DType* inputs) const override { return inputs[kImage]; }

  // mmcv's plugin reads the grid in the input's type; the kernel does so too.
  bool supports(int position, const TensorList& tensors) const override {
    const TensorInfo& tensor = tensors.items[position];
    if (position == kImage) return is_linear(tensor, DType::kFloat) || is_linear(tensor, DType::kHalf);
    return is_linear(tensor, tensors.items[kImage].dtype);
  }

  size_t workspace_bytes(const TensorList&) const override { return 0; }

  cudaError_t enqueue(const TensorList& tensors, const void* const* inputs, void* const* outputs, void*,
                      cudaStream_t stream) const override {
    const TensorInfo& image = tensors.input(kImage);
    const TensorInfo& output = tensors.output(0);
    GridSampleArguments arguments{};
    arguments.input = inputs[kImage];
    arguments.grid = inputs[kGrid];
    arguments.output = outputs[0];
    arguments.type = element_type(image.dtype);
    arguments.num_spatial = image.rank - 2;
    arguments.batch = image.dims[0];
    arguments.channels = image.dims[1];
    for (int axis = 0; axis < 3; ++axis) {
      const int source = image.rank - 3 + axis;  // height and width come last; without a depth it is 1
      arguments.in_size[axis] = source >= 2 ? image.dims[source] : 1;
      arguments.out_size[axis] = source >= 2 ? output.dims[source] : 1;
    }
    arguments.interpolation = interpolation_;
    arguments.padding = padding_;
    arguments.align_corners = align_corners_;
    return launch_grid_sample(arguments, stream);
  }

 private:
  Interpolation interpolation_;
  Padding padding_;
  bool align_corners_;
};

}  // namespace

OpType grid_sampler_type() {
  return {kName,
          {optional_int("interpolation_mode", 0), optional_int("padding_mode", 0), optional_int("align_corners", 0)},
          [](Attributes attributes) -> std::shared_ptr<const Op> {
            return std::make_shared<GridSamplerOp>(std::move(attributes));
          }};
}

}  // namespace maskrcnn
