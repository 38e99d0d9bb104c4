// The edge between PyTorch's tensors and the kernels that both libraries share: checks, and how they speak.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastflow {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Throws std::invalid_argument with the parts strung together: in Python a ValueError, from PyTorch 2.15 on a
// RuntimeError.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// A macro, so that the parts of the message are evaluated only when it is needed.
#define FASTFLOW_CHECK(ok, ...)   \
  do {                            \
    if (!(ok)) fail(__VA_ARGS__); \
  } while (false)

// As Python spells it.
inline std::string dtype_string(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    default:
      return torch::headeronly::toString(dtype);
  }
}

inline std::string shape_string(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ']';
  return text.str();
}

// Checks that `tensor` has `shape`; `described` is how the message spells it.
inline void check_shape(
    const Tensor& tensor, const char* name, const char* described, std::initializer_list<int64_t> shape) {
  bool equal = tensor.dim() == static_cast<int64_t>(shape.size());
  std::ostringstream wanted;
  int64_t i = 0;
  for (const int64_t size : shape) {
    equal = equal && tensor.size(i) == size;
    wanted << (i++ ? ", " : "") << size;
  }
  FASTFLOW_CHECK(equal, "`", name, "` must be ", described, " = [", wanted.str(), "]; got ", shape_string(tensor));
}

inline void check_rank(const Tensor& tensor, const char* name, const char* described, int64_t rank) {
  FASTFLOW_CHECK(tensor.dim() == rank, "`", name, "` must be ", described, "; got ", shape_string(tensor));
}

inline Tensor empty_like_shape(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()));
}

}  // namespace fastflow
