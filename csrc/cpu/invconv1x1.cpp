#include <algorithm>
#include <cmath>

#include "log_det.h"
#include "ops.h"

namespace fastflow {
namespace {

// log |det matrix| [n, n] by Gaussian elimination with partial pivoting; minus infinity for a singular matrix.
double log_abs_det(std::vector<double> matrix, int64_t n) {
  const auto row = [&](int64_t i) { return matrix.data() + i * n; };
  double sum = 0;
  for (int64_t k = 0; k < n; ++k) {
    int64_t pivot = k;
    for (int64_t i = k + 1; i < n; ++i) {
      if (std::abs(row(i)[k]) > std::abs(row(pivot)[k])) pivot = i;
    }
    std::swap_ranges(row(k), row(k) + n, row(pivot));
    sum += std::log(std::abs(row(k)[k]));
    if (row(k)[k] == 0) break;
    for (int64_t i = k + 1; i < n; ++i) {
      const double factor = row(i)[k] / row(k)[k];
      for (int64_t j = k + 1; j < n; ++j) row(i)[j] -= factor * row(k)[j];
    }
  }
  return sum;
}

template <class T>
std::tuple<Tensor, Tensor> launch(const Tensor& x, const Tensor& weight, const OptionalTensor& mask, bool log_det) {
  const auto dense_x = Dense<T>::batched(x, "x");
  const auto dense_weight = Dense<T>::whole(weight, "weight");
  const auto dense_mask = Dense<T>::batched(mask, "mask");
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const Tensor y = empty_like_shape(x, {batch, channels, time});
  const InvConv1x1Params<T> params = {dense_x.data,   dense_weight.data, dense_mask.data,
                                      writable<T>(y), dense_x.batch,     dense_mask.batch,
                                      batch,          channels,          time};
  const int64_t tasks = batch * kernels<T>().invconv1x1_tiles(params);
  if (tasks > 0) parallel_rows(kernels<T>().invconv1x1, params, tasks, batch * time * channels * channels / tasks);
  if (!log_det) return {y, empty_like_shape(x, {0})};
  const std::vector<double> matrix(dense_weight.data, dense_weight.data + channels * channels);
  return {y, log_det_of_steps(x, dense_mask, log_abs_det(matrix, channels))};
}

}  // namespace

std::tuple<Tensor, Tensor> invconv1x1(const Tensor& x, const Tensor& weight, const OptionalTensor& mask, bool log_det) {
  check_rank(x, "x", "[B, C, T]", 3);
  check_shape(weight, "weight", "[C, C]", {x.size(1), x.size(1)});
  if (mask) check_shape(*mask, "mask", "[B, 1, T]", {x.size(0), 1, x.size(2)});
  return dispatch(x, "x", [&](auto type) { return launch<decltype(type)>(x, weight, mask, log_det); });
}

}  // namespace fastflow
