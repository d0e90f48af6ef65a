#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

#include "plugins/cast_masks/cast_masks_reference.h"
#include "plugins/common/bindings.h"
#include "plugins/common/numpy_arrays.h"

namespace maskrcnn {
namespace {

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

const Bindings bindings([](py::module_& module) {
  using py::arg;
  module.def("cast_masks", &cast_masks_binding, arg("values"),
             R"(Return float32 values as uint8, rounded towards zero: (N,).

values: (N,) float32. Below 0 and NaN give 0, above 255 gives 255. ValueError where it has another shape or dtype.)");
});

}  // namespace
}  // namespace maskrcnn
