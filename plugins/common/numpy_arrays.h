// NumPy arguments and results of the CPU reference. Checks name what was expected and what was found, and raise
// ValueError.
#pragma once

#include <pybind11/numpy.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace maskrcnn {

namespace py = pybind11;

// In an expected shape: any size.
constexpr py::ssize_t kAny = -1;

inline std::string shape_text(const py::ssize_t* sizes, size_t rank) {
  std::string text = "(";
  for (size_t i = 0; i < rank; ++i) {
    text += (i > 0 ? ", " : "") + (sizes[i] == kAny ? std::string("*") : std::to_string(sizes[i]));
  }
  return text + (rank == 1 ? ",)" : ")");
}

inline std::string describe(const py::array& array) {
  const bool contiguous = (array.flags() & py::array::c_style) != 0;
  return py::str(array.dtype()).cast<std::string>() + " " +
         shape_text(array.shape(), static_cast<size_t>(array.ndim())) +
         (contiguous ? "" : ", not C-contiguous (numpy.ascontiguousarray makes it so)");
}

inline bool has_shape(const py::array& array, const std::vector<py::ssize_t>& sizes) {
  if (array.ndim() != static_cast<py::ssize_t>(sizes.size())) return false;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] != kAny && array.shape(static_cast<py::ssize_t>(i)) != sizes[i]) return false;
  }
  return true;
}

// The array's elements, if it is C-contiguous, of type T and of the expected shape.
template <typename T>
const T* checked_data(const char* name, const py::array& array, std::initializer_list<py::ssize_t> expected) {
  const std::vector<py::ssize_t> sizes(expected);
  const bool contiguous = (array.flags() & py::array::c_style) != 0;
  if (contiguous && array.dtype().equal(py::dtype::of<T>()) && has_shape(array, sizes)) {
    return static_cast<const T*>(array.data());
  }
  throw py::value_error(std::string(name) + ": expected a C-contiguous " +
                        py::str(py::dtype::of<T>()).cast<std::string>() + " array of shape " +
                        shape_text(sizes.data(), sizes.size()) + ", found " + describe(array));
}

inline void check(bool condition, const std::string& message) {
  if (!condition) throw py::value_error(message);
}

// A new array, its elements undefined.
template <typename T>
py::array_t<T> new_array(std::initializer_list<py::ssize_t> sizes) {
  return py::array_t<T>(std::vector<py::ssize_t>(sizes));
}

template <typename T>
py::array_t<T> new_zeros(std::initializer_list<py::ssize_t> sizes) {
  auto array = new_array<T>(sizes);
  std::fill(array.mutable_data(), array.mutable_data() + array.size(), T{0});
  return array;
}

}  // namespace maskrcnn
