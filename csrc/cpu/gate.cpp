#include "ops.h"

namespace fastflow {
namespace {

template <class T>
Tensor launch(const Tensor& x) {
  const auto dense_x = Dense<T>::batched(x, "x");
  const int64_t batch = x.size(0), channels = x.size(1) / 2, time = x.size(2);
  const Tensor y = empty_like_shape(x, {batch, channels, time});
  const GateParams<T> params = {dense_x.data, writable<T>(y), dense_x.batch, batch, channels, time};
  parallel_rows(kernels<T>().gate, params, batch * channels, time);
  return y;
}

}  // namespace

Tensor gate(const Tensor& x) {
  FASTFLOW_CHECK(
      x.dim() == 3 && x.size(1) % 2 == 0, "`x` must be [B, 2G, T] with an even number of channels; got ",
      shape_string(x));
  return dispatch_with_bfloat16(x, "x", [&](auto type) { return launch<decltype(type)>(x); });
}

}  // namespace fastflow
