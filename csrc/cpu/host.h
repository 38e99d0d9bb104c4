// The edge between PyTorch's tensors and the CPU kernels: strides, dtypes, scratch memory, threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "../host.h"
#include "kernels.h"

namespace fastflow {

// Calls f(T{}) with the C++ type of `tensor`.
template <class F>
auto dispatch(const Tensor& tensor, const char* name, const F& f) {
  const ScalarType dtype = tensor.scalar_type();
  FASTFLOW_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Double, "`", name,
      "` must be float32 or float64 for the cpu backend; got ", dtype_string(dtype));
  return dtype == ScalarType::Float ? f(float{}) : f(double{});
}

// The same for the operations that take bfloat16 too.
template <class F>
auto dispatch_with_bfloat16(const Tensor& tensor, const char* name, const F& f) {
  const ScalarType dtype = tensor.scalar_type();
  FASTFLOW_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16, "`", name,
      "` must be float32, float64 or bfloat16 for the cpu backend; got ", dtype_string(dtype));
  return dtype == ScalarType::BFloat16 ? f(bfloat16{}) : dtype == ScalarType::Float ? f(float{}) : f(double{});
}

template <class T>
constexpr ScalarType scalar_type_of =
    std::is_same_v<T, float> ? ScalarType::Float
                             : (std::is_same_v<T, double> ? ScalarType::Double : ScalarType::BFloat16);

inline void check_same_kind(const Tensor& tensor, const char* name, ScalarType dtype) {
  FASTFLOW_CHECK(
      tensor.scalar_type() == dtype, "`", name, "` must be ", dtype_string(dtype), " like the first argument; got ",
      dtype_string(tensor.scalar_type()));
  FASTFLOW_CHECK(tensor.is_cpu(), "`", name, "` must be on the CPU like the first argument");
}

// A tensor whose memory the kernels can walk: `data` as its shape says, `batch` elements between batch entries.
// It owns what it points to: the argument itself where its layout allows, a contiguous copy otherwise.
template <class T>
struct Dense {
  Tensor owner;
  const T* data = nullptr;
  int64_t batch = 0;

  // [B, rows, time] of which only the batch stride may be arbitrary, as in x[:, :half].
  static Dense batched(const Tensor& tensor, const char* name) {
    check_same_kind(tensor, name, scalar_type_of<T>);
    const int64_t rows = tensor.size(1), time = tensor.size(2);
    const bool dense = (time <= 1 || tensor.stride(2) == 1) && (rows <= 1 || tensor.stride(1) == time);
    return Dense(dense ? tensor : torch::stable::contiguous(tensor), dense ? tensor.stride(0) : rows * time);
  }
  static Dense batched(const OptionalTensor& tensor, const char* name) {
    return tensor ? batched(*tensor, name) : Dense();
  }

  // Any shape, contiguous.
  static Dense whole(const Tensor& tensor, const char* name) {
    check_same_kind(tensor, name, scalar_type_of<T>);
    return Dense(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor), 0);
  }
  static Dense whole(const OptionalTensor& tensor, const char* name) { return tensor ? whole(*tensor, name) : Dense(); }

 private:
  Dense() = default;
  Dense(Tensor tensor, int64_t batch_stride)
      : owner(std::move(tensor)), data(static_cast<const T*>(owner.const_data_ptr())), batch(batch_stride) {}
};

template <class T>
T* writable(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Memory of one thread, kept and grown from call to call: blocks of this size would otherwise go back to the system
// each time and be paged in anew.
class Scratch {
 public:
  template <class T>
  T* get(int64_t elements) {
    const size_t bytes = (static_cast<size_t>(elements) * sizeof(T) + 63) / 64 * 64;
    if (bytes > bytes_) {
      memory_.reset();
      bytes_ = 0;
      memory_.reset(std::aligned_alloc(64, bytes));
      if (!memory_) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t bytes_ = 0;
};

inline Tensor empty_of(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(
      like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), std::make_optional(dtype));
}

// A weight in the type that the kernels for T compute in. Beside bfloat16 it may be float32 already.
template <class T>
Dense<accumulator_t<T>> dense_weight(const Tensor& tensor, const char* name) {
  using A = accumulator_t<T>;
  const bool narrow = !std::is_same_v<T, A> && tensor.scalar_type() == scalar_type_of<T>;
  return Dense<A>::whole(narrow ? torch::stable::to(tensor, std::make_optional(scalar_type_of<A>)) : tensor, name);
}

// Elements of light work worth a thread of their own.
constexpr int64_t kGrain = 16384;
// Multiplications and additions of a small product worth a thread of their own.
constexpr int64_t kProductGrain = 1 << 18;

// Runs kernel(params, begin, end) over `rows` rows of `row_length` elements on PyTorch's own threads.
template <class Params>
void parallel_rows(
    void (*kernel)(const Params&, int64_t, int64_t), const Params& params, int64_t rows, int64_t row_length) {
  if (rows == 0 || row_length == 0) return;
  const int64_t grain = std::max<int64_t>(1, kGrain / row_length);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

}  // namespace fastflow
