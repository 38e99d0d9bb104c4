#include "../flow_host.h"
#include "ops.h"

namespace fastflow {
namespace {

template <class T>
std::tuple<Tensor, Tensor> launch(
    const Tensor& x, const Tensor& hidden, const Tensor& end_weight, const OptionalTensor& end_bias,
    const OptionalTensor& weight, const OptionalTensor& early, int64_t n_early, CouplingForm form, bool transform_first,
    bool reverse, bool log_det) {
  using acc_t = accumulator_t<T>;
  const auto dense_x = Dense<T>::batched(x, "x");
  const auto dense_hidden = Dense<T>::batched(hidden, "hidden");
  const auto wide_end_weight = dense_weight<T>(end_weight, "end_weight");
  const auto dense_end_bias = Dense<T>::whole(end_bias, "end_bias");
  const auto wide_weight = weight ? dense_weight<T>(*weight, "weight") : Dense<acc_t>::whole(weight, "weight");
  const auto dense_early = Dense<T>::batched(early, "early");
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const int64_t joining = early ? early->size(1) : 0;
  const Tensor y = empty_like_shape(x, {batch, joining + channels, time});
  const Tensor total = empty_of(x, {log_det ? batch : 0}, scalar_type_of<acc_t>);

  FlowStepParams<T, T> params = {};
  params.x = dense_x.data;
  params.hidden = dense_hidden.data;
  params.end_bias = dense_end_bias.data;
  params.early = dense_early.data;
  params.y = writable<T>(y);
  params.x_batch = dense_x.batch;
  params.hidden_batch = dense_hidden.batch;
  params.hidden_channel = time;
  params.hidden_step = 1;
  params.early_batch = dense_early.batch;
  params.batch = batch;
  params.time = time;
  params.channels = static_cast<int32_t>(channels);
  params.hidden_channels = static_cast<int32_t>(hidden.size(1));
  params.early_channels = static_cast<int32_t>(joining);
  params.n_early = static_cast<int32_t>(weight ? n_early : 0);
  params.form = form;
  params.transform_first = transform_first;
  params.reverse = reverse;

  const Kernels<T>& k = kernels<T>();
  const int64_t tiles = k.flow_step_tiles(params), tasks = batch * tiles;
  std::vector<double> parts(static_cast<size_t>(log_det ? tasks : 0));
  params.parts = log_det ? parts.data() : nullptr;
  if (tasks > 0) {
    const int64_t products = (end_weight.numel() + (weight ? weight->numel() : 0)) * time / tiles;
    torch::stable::parallel_for(0, tasks, kProductGrain / (products + 1) + 1, [&](int64_t begin, int64_t end) {
      static thread_local Scratch scratch;  // in here, or threads of the pool would never free theirs
      k.flow_step(
          params, begin, end, wide_end_weight.data, wide_weight.data,
          scratch.get<acc_t>(k.flow_step_scratch_size(params)));
    });
  }
  for (int64_t b = 0; b < total.numel(); ++b) {
    double sum = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) sum += parts[static_cast<size_t>(b * tiles + tile)];
    writable<acc_t>(total)[b] = static_cast<acc_t>(sum);
  }
  return {y, total};
}

// `tensor` in the dtype of x where it may differ: as under autocast, a half-precision network in a float32 flow.
Tensor like(const Tensor& tensor, const Tensor& x) {
  const ScalarType dtype = tensor.scalar_type();
  const bool widens =
      x.scalar_type() == ScalarType::Float && (dtype == ScalarType::Half || dtype == ScalarType::BFloat16);
  return widens ? torch::stable::to(tensor, std::make_optional(ScalarType::Float)) : tensor;
}

}  // namespace

std::tuple<Tensor, Tensor> flow_step(
    const Tensor& x, const Tensor& hidden, const Tensor& end_weight, const OptionalTensor& end_bias,
    const OptionalTensor& weight, const OptionalTensor& early, int64_t n_early, const std::string& form,
    bool transform_first, bool reverse, bool log_det) {
  const CouplingForm parsed = parse_coupling_form(form);
  check_rank(x, "x", "[B, C, T]", 3);
  FASTFLOW_CHECK(x.size(1) >= 2 && x.size(1) % 2 == 0, "`x` must be [B, C, T] with C even; got ", shape_string(x));
  check_flow_step(x, hidden, end_weight, end_bias, weight, early, n_early, parsed);
  const OptionalTensor bias = end_bias ? OptionalTensor(like(*end_bias, x)) : OptionalTensor();
  return dispatch_with_bfloat16(x, "x", [&](auto type) {
    return launch<decltype(type)>(
        x, like(hidden, x), like(end_weight, x), bias, weight, early, n_early, parsed, transform_first, reverse,
        log_det);
  });
}

}  // namespace fastflow
