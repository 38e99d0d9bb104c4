// What the small operations share on the host of a GPU.
#pragma once

#include "../flow_host.h"
#include "host.h"

namespace fastflow {

// What sums over empty tensors are.
template <class T>
Tensor zeros_of(const Tensor& like, std::initializer_list<int64_t> shape, arch::Stream stream) {
  const Tensor zeros = empty_of(like, shape, scalar_type_of<T>);
  if (zeros.numel() > 0) arch::zero_async(writable<T>(zeros), zeros.numel() * sizeof(T), stream);
  return zeros;
}

}  // namespace fastflow
