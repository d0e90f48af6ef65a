// Divisions of whole numbers that end the process: runtime/graphs/divisors.py in C++.
#pragma once

#include <string>

namespace maskrcnn {

// Returns the first of an ONNX file's bytes: the operator and the numbers. Empty of one without any, and where the
// bytes are damaged, which a runtime says. What is computed while the model runs cannot be seen here.
std::string fatal_division(const std::string& data);

}  // namespace maskrcnn
