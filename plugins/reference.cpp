// The CPU reference of the operators, as the Python module plugins._reference. The maths is in <op>/<op>_math.h, which
// the CUDA kernels share, the loops are in <op>/<op>_reference.h, argument checks and bindings in
// <op>/<op>_bindings.cpp.
#include <pybind11/pybind11.h>

#include "plugins/common/bindings.h"

PYBIND11_MODULE(_reference, module) {
  module.doc() = "CPU reference of the operators. Shapes, dtypes, units and sources: plugins/README.md.";
  maskrcnn::Bindings::add_all(module);
}
