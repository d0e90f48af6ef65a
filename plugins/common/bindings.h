// What an operator adds to the Python module plugins._reference.
#pragma once

#include <pybind11/pybind11.h>

namespace maskrcnn {

namespace py = pybind11;

// A static object in <op>_bindings.cpp, so that a new operator is no edit of the module: it is in a list from the
// moment the shared object is loaded, and the module's initialisation walks the list.
class Bindings {
 public:
  using Add = void (*)(py::module_& module);

  explicit Bindings(Add add) : add_(add), next_(first_) { first_ = this; }

  static void add_all(py::module_& module) {
    for (const Bindings* bindings = first_; bindings != nullptr; bindings = bindings->next_) bindings->add_(module);
  }

 private:
  inline static const Bindings* first_ = nullptr;
  Add add_;
  const Bindings* next_;
};

}  // namespace maskrcnn
