#include "divisors.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <variant>
#include <vector>

#include "errors.h"
#include "wire.h"

namespace maskrcnn {
namespace {

constexpr int kMostDepth = 100;  // of graphs inside graphs

// TensorProto.DataType of whole numbers.
struct Type {
  std::uint64_t number;
  const char* name;
  std::size_t num_bytes;
  bool is_signed;
};
constexpr Type kTypes[] = {{2, "uint8", 1, false}, {3, "int8", 1, true},    {4, "uint16", 2, false},
                           {5, "int16", 2, true},  {6, "int32", 4, true},   {12, "uint32", 4, false},
                           {7, "int64", 8, true},  {13, "uint64", 8, false}};
constexpr std::uint64_t kInt64 = 7;

const Type* type_of(std::uint64_t number) {
  const auto* found =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](const Type& t) { return t.number == number; });
  return found == std::end(kTypes) ? nullptr : found;
}

// A TensorProto, which may be large, or the numbers of a Constant's value_int or value_ints.
using Constant = std::variant<Message, std::vector<std::uint64_t>>;

// The constants of a graph, in those of the graphs around it.
struct Scope {
  const Scope* outer;
  std::map<std::string, Constant> constants;

  const Constant* find(const std::string& name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->outer) {
      const auto found = scope->constants.find(name);
      if (found != scope->constants.end()) return &found->second;
    }
    return nullptr;
  }
};

struct Node {
  std::string operation, name;
  std::vector<std::string> inputs, outputs;
  std::optional<Constant> constant;
  std::vector<Message> graphs;
};

// Whole numbers of one type, in 64 bits.
struct Numbers {
  const Type* type;
  std::vector<std::int64_t> values;

  bool has(std::int64_t value) const { return std::count(values.begin(), values.end(), value) > 0; }
  std::int64_t least() const {
    return -1 - static_cast<std::int64_t>((std::uint64_t{1} << (8 * type->num_bytes - 1)) - 1);
  }
};

// The number that the lowest bits are, in the type's width.
std::int64_t in_type(std::uint64_t bits, const Type& type) {
  const std::size_t unused = 64 - 8 * type.num_bytes;
  const std::uint64_t high = bits << unused;
  return type.is_signed ? static_cast<std::int64_t>(high) >> unused : static_cast<std::int64_t>(high >> unused);
}

void append_numbers(const Message& field, std::uint64_t number, std::vector<std::uint64_t>& numbers) {
  if (field.is_number(number)) numbers.push_back(field.value());
  if (!field.is(number)) return;
  for (Message packed = field.message(); packed.next_packed();) numbers.push_back(packed.value());
}

std::vector<std::uint64_t> numbers_in(const std::string& raw, std::size_t num_bytes) {
  std::vector<std::uint64_t> numbers(raw.size() / num_bytes);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    for (std::size_t byte = num_bytes; byte-- > 0;) {  // the lowest first in the file
      numbers[i] = numbers[i] << 8 | static_cast<unsigned char>(raw[i * num_bytes + byte]);
    }
  }
  return numbers;
}

// Nothing of other types, and of data in another file.
std::optional<Numbers> numbers_of(const Constant* constant) {
  if (constant == nullptr) return std::nullopt;
  std::uint64_t type_number = kInt64;
  std::vector<std::uint64_t> numbers;
  if (const auto* given = std::get_if<std::vector<std::uint64_t>>(constant)) {
    numbers = *given;
  } else {
    type_number = 0;
    std::string raw;
    for (Message tensor = std::get<Message>(*constant); tensor.next();) {
      if (tensor.is_number(2)) type_number = tensor.value();
      for (const std::uint64_t field : {5, 7, 11}) append_numbers(tensor, field, numbers);  // int32, int64, uint64
      if (tensor.is(9)) raw = tensor.text();
    }
    const Type* type = type_of(type_number);
    if (type != nullptr && numbers.empty()) numbers = numbers_in(raw, type->num_bytes);
  }
  const Type* type = type_of(type_number);
  if (type == nullptr) return std::nullopt;
  Numbers found{type, {}};
  for (const std::uint64_t bits : numbers) found.values.push_back(in_type(bits, *type));
  return found;
}

// What is wrong with a division of two tensors, null for one that is computed.
std::string wrong(const Constant* dividend, const Constant* divisor) {
  const auto by = numbers_of(divisor);
  if (!by) return "";
  if (by->has(0)) return joined("expected no division of ", by->type->name, " by 0, found one");
  if (!by->type->is_signed || !by->has(-1)) return "";
  const auto of = numbers_of(dividend);
  if (!of || of->type != by->type || !of->has(of->least())) return "";
  return joined("expected quotients that ", by->type->name, " holds, found ", of->least(), " by -1");
}

// The constant that an attribute of Constant is; adds the graphs that one of others has.
std::optional<Constant> read_attribute(Message message, std::vector<Message>& graphs) {
  std::string name;
  std::optional<Message> tensor;
  std::vector<std::uint64_t> numbers;
  while (message.next()) {
    if (message.is(1)) name = message.text();
    for (const std::uint64_t field : {3, 8}) append_numbers(message, field, numbers);
    if (message.is(5)) tensor = message.message();
    if (message.is(6) || message.is(11)) graphs.push_back(message.message());
  }
  if (name == "value_int" || name == "value_ints") return numbers;
  if (name == "value" && tensor) return *tensor;
  return std::nullopt;
}

Node node_of(Message message) {
  Node node;
  std::optional<Constant> constant;
  while (message.next()) {
    if (message.is(1)) node.inputs.push_back(message.text());
    if (message.is(2)) node.outputs.push_back(message.text());
    if (message.is(3)) node.name = message.text();
    if (message.is(4)) node.operation = message.text();
    if (!message.is(5)) continue;
    auto found = read_attribute(message.message(), node.graphs);
    if (found) constant = std::move(found);
  }
  if (node.operation == "Constant") node.constant = std::move(constant);
  return node;
}

std::string name_of(Message tensor) {
  while (tensor.next()) {
    if (tensor.is(8)) return tensor.text();
  }
  return "";
}

std::string label_of(const Node& node) {
  std::string names = node.name;
  if (!names.empty()) return node.operation + " " + names;
  for (const std::string& output : node.outputs) names += (names.empty() ? "" : ", ") + output;
  return node.operation + " " + names;
}

// kGraph and kFunction: the field that nodes are in.
constexpr std::uint64_t kGraph = 1, kFunction = 7;

std::string found_in(Message graph, std::uint64_t node_field, const Scope* outer, int depth) {
  if (depth > kMostDepth) invalid("graphs too deep in each other");
  Scope scope{outer, {}};
  std::vector<Node> nodes;
  while (graph.next()) {
    if (graph.is(node_field)) nodes.push_back(node_of(graph.message()));
    if (graph.is(5) && node_field == kGraph) {
      scope.constants.insert_or_assign(name_of(graph.message()), graph.message());
    }
  }
  for (const Node& node : nodes) {
    if (node.constant && !node.outputs.empty()) scope.constants.insert_or_assign(node.outputs[0], *node.constant);
  }
  for (const Node& node : nodes) {
    if ((node.operation == "Div" || node.operation == "Mod") && node.inputs.size() == 2) {
      const std::string words = wrong(scope.find(node.inputs[0]), scope.find(node.inputs[1]));
      if (!words.empty()) return label_of(node) + ": " + words;
    }
    for (const Message& inner : node.graphs) {
      const std::string found = found_in(inner, kGraph, &scope, depth + 1);
      if (!found.empty()) return found;
    }
  }
  return "";
}

}  // namespace

std::string fatal_division(const std::string& data) {
  try {
    for (Message model(data); model.next();) {
      std::string found;
      if (model.is(7)) found = found_in(model.message(), kGraph, nullptr, 0);
      if (model.is(25)) found = found_in(model.message(), kFunction, nullptr, 0);
      if (!found.empty()) return found;
    }
  } catch (const Failure&) {
    // Of the file's outside all is whole: a runtime says what is wrong inside.
  }
  return "";
}

}  // namespace maskrcnn
