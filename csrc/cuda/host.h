// The edge between PyTorch's tensors and the kernels for GPUs: dtypes, strides, layouts, device and stream.
#pragma once

#include <arch/torch.h>

#include <algorithm>
#include <arch/platform.cuh>
#include <type_traits>

#include "../host.h"
#include "launch.h"

namespace fastflow {

template <class T>
constexpr ScalarType scalar_type_of = std::is_same_v<T, double>       ? ScalarType::Double
                                      : std::is_same_v<T, float>      ? ScalarType::Float
                                      : std::is_same_v<T, arch::half> ? ScalarType::Half
                                                                      : ScalarType::BFloat16;

// Calls f(Type<T>{}) with the kernels' type for `tensor`.
template <class T>
struct Type {
  using type = T;
};

template <class F>
auto dispatch(const Tensor& tensor, const char* name, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return f(Type<double>{});
    case ScalarType::Float:
      return f(Type<float>{});
    case ScalarType::Half:
      return f(Type<arch::half>{});
    case ScalarType::BFloat16:
      return f(Type<arch::bfloat16>{});
    default:
      fail(
          "`", name, "` must be float64, float32, float16 or bfloat16 for the cuda backend; got ",
          dtype_string(tensor.scalar_type()));
  }
}

// Checks that `tensor` has the dtype T and is where `first`, the operation's first argument, is.
template <class T>
void check_kind(const Tensor& tensor, const char* name, const Tensor& first) {
  FASTFLOW_CHECK(
      tensor.scalar_type() == scalar_type_of<T>, "`", name, "` must be ", dtype_string(scalar_type_of<T>),
      " like the first argument; got ", dtype_string(tensor.scalar_type()));
  FASTFLOW_CHECK(
      tensor.is_cuda() == first.is_cuda() && tensor.get_device_index() == first.get_device_index(), "`", name,
      "` must be on the device of the first argument");
}

// How far a tensor's elements reach from its first one, in bytes.
inline int64_t span_bytes(const Tensor& tensor) {
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) == 0) return 0;
    last += (tensor.size(i) - 1) * tensor.stride(i);
  }
  return (last + 1) * static_cast<int64_t>(tensor.element_size());
}

// A tensor whose memory a kernel can walk. It owns what it points to: the argument itself where its layout allows, a
// copy otherwise.
template <class T>
struct Dense {
  Tensor owner;
  const T* data = nullptr;
  int64_t batch = 0;  // elements from one batch entry to the next
  int64_t step = 0;   // elements from one time step to the next, of channels_last()

  Dense() = default;

  // [B, rows, time] of which only the batch stride may be arbitrary, as in x[:, :half].
  static Dense batched(const Tensor& tensor, const char* name, const Tensor& first) {
    check_kind<T>(tensor, name, first);
    const int64_t rows = tensor.size(1), time = tensor.size(2);
    const bool dense = (time <= 1 || tensor.stride(2) == 1) && (rows <= 1 || tensor.stride(1) == time);
    return Dense(dense ? tensor : torch::stable::contiguous(tensor), dense ? tensor.stride(0) : rows * time, 1);
  }
  static Dense batched(const OptionalTensor& tensor, const char* name, const Tensor& first) {
    return tensor ? batched(*tensor, name, first) : Dense();
  }

  // Any shape, contiguous, from a 16-byte boundary.
  static Dense whole(const Tensor& tensor, const char* name, const Tensor& first) {
    check_kind<T>(tensor, name, first);
    const Tensor dense = torch::stable::contiguous(tensor);
    return Dense(is_aligned(dense) ? dense : torch::stable::clone(dense), 0, 0);
  }
  static Dense whole(const OptionalTensor& tensor, const char* name, const Tensor& first) {
    return tensor ? whole(*tensor, name, first) : Dense();
  }

  // [B, channels, time] with the channels of a step beside each other; each step starts at a 16-byte boundary wherever
  // channels * sizeof(T) is a multiple of 16.
  static Dense channels_last(const Tensor& tensor, const char* name, const Tensor& first) {
    check_kind<T>(tensor, name, first);
    const int64_t channels = tensor.size(1), time = tensor.size(2);
    const int64_t step = time > 1 ? tensor.stride(2) : channels;
    const int64_t batch = tensor.size(0) > 1 ? tensor.stride(0) : step * time;
    constexpr int64_t unit = 16 / sizeof(T);
    const bool aligned = channels % unit != 0 || (is_aligned(tensor) && step % unit == 0 && batch % unit == 0);
    // a stride of zero, of an expanded tensor, is not for the copy engine
    if ((channels <= 1 || tensor.stride(1) == 1) && aligned && step > 0 && batch > 0) return Dense(tensor, batch, step);
    Tensor turned = tensor;
    turned = torch::stable::transpose(turned, 1, 2);
    turned = torch::stable::contiguous(turned);
    return Dense(is_aligned(turned) ? turned : torch::stable::clone(turned), channels * time, channels);
  }
  static Dense channels_last(const OptionalTensor& tensor, const char* name, const Tensor& first) {
    return tensor ? channels_last(*tensor, name, first) : Dense();
  }

 private:
  Dense(Tensor tensor, int64_t batch_stride, int64_t step_stride)
      : owner(std::move(tensor)),
        data(static_cast<const T*>(owner.const_data_ptr())),
        batch(batch_stride),
        step(step_stride) {
    arch::declare_memory(data, span_bytes(owner));
  }

  static bool is_aligned(const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  }
};

template <class T>
T* writable(const Tensor& tensor) {
  T* data = static_cast<T*>(tensor.mutable_data_ptr());
  arch::declare_memory(data, span_bytes(tensor));
  return data;
}

inline Tensor empty_of(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(
      like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), std::make_optional(dtype));
}

// [B, T, C] seen as [B, C, T].
inline Tensor channels_first(const Tensor& tensor) {
  Tensor seen = tensor;
  return torch::stable::transpose(seen, 1, 2);
}

}  // namespace fastflow
