#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "plugins/common/bindings.h"
#include "plugins/common/numpy_arrays.h"
#include "plugins/select_top/select_top_reference.h"

namespace maskrcnn {
namespace {

py::tuple select_top_binding(const py::array& scores, int64_t k) {
  constexpr int64_t kMaxScores = 1 << 24;
  const auto* score_data = checked_data<float>("scores", scores, {kAny, kAny});
  const int64_t batch = scores.shape(0);
  const int64_t num_scores = scores.shape(1);
  check(num_scores <= kMaxScores,
        "scores: expected rows of up to " + std::to_string(kMaxScores) + ", found " + describe(scores));
  check(k >= 1 && k <= num_scores,
        "k: expected 1 to the number of scores, " + std::to_string(num_scores) + ", found " + std::to_string(k));
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

const Bindings bindings([](py::module_& module) {
  using py::arg;
  module.def("select_top", &select_top_binding, arg("scores"), arg("k"),
             R"(Return (values, indices) of the k best scores of each row: (B, k) float32, (B, k) int32.

scores: (B, N) float32, k <= N <= 2^24. Best first, equal scores by ascending index; 0 and -0 are equal. NaN counts as
lowest and comes last, by index. ValueError names the argument that has another shape, dtype or range.

Source: ONNX TopK, largest and sorted; there, the place of NaN is not defined.)");
});

}  // namespace
}  // namespace maskrcnn
