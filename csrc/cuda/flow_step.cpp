#include "flow_host.h"
#include "ops.h"

namespace fastflow {
namespace {

// `hidden` as the kernel reads it: any strides of which that of the channels or that of the steps is 1.
Tensor readable(const Tensor& hidden) {
  const bool channels_beside = hidden.size(1) <= 1 || hidden.stride(1) == 1;
  const bool steps_beside = hidden.size(2) <= 1 || hidden.stride(2) == 1;
  return channels_beside || steps_beside ? hidden : torch::stable::contiguous(hidden);
}

template <class X, class H>
std::tuple<Tensor, Tensor> run(
    const Tensor& x, const Tensor& hidden, const Tensor& end_weight, const OptionalTensor& end_bias,
    const OptionalTensor& weight, const OptionalTensor& early, int64_t n_early, CouplingForm form, bool transform_first,
    bool reverse, bool log_det) {
  using acc_t = accumulator_t<X>;
  const arch::OnDevice on(x);
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  const int64_t joining = early ? early->size(1) : 0;
  const Tensor y = empty_of(x, {batch, joining + channels, time}, scalar_type_of<X>);
  if (y.numel() == 0) return {y, zeros_of<acc_t>(x, {log_det ? batch : 0}, on.stream())};

  check_kind<H>(hidden, "hidden", x);
  const Tensor read = readable(hidden);
  arch::declare_memory(read.const_data_ptr(), span_bytes(read));
  const auto dense_x = Dense<X>::batched(x, "x", x);
  const auto dense_end_weight = Dense<H>::whole(end_weight, "end_weight", x);
  const auto dense_end_bias = Dense<H>::whole(end_bias, "end_bias", x);
  const auto dense_weight = Dense<X>::whole(weight, "weight", x);
  const auto dense_early = Dense<X>::batched(early, "early", x);
  FlowStepParams<X, H> params = {};
  params.x = dense_x.data;
  params.hidden = static_cast<const H*>(read.const_data_ptr());
  params.end_weight = dense_end_weight.data;
  params.end_bias = dense_end_bias.data;
  params.weight = dense_weight.data;
  params.early = dense_early.data;
  params.y = writable<X>(y);
  params.x_batch = dense_x.batch;
  params.hidden_batch = read.stride(0);
  params.hidden_channel = read.size(1) <= 1 ? 1 : read.stride(1);
  params.hidden_step = read.stride(2);
  params.early_batch = dense_early.batch;
  params.batch = batch;
  params.time = time;
  params.channels = static_cast<int32_t>(channels);
  params.hidden_channels = static_cast<int32_t>(read.size(1));
  params.early_channels = static_cast<int32_t>(joining);
  params.n_early = static_cast<int32_t>(weight ? n_early : 0);
  params.form = form;
  params.transform_first = transform_first;
  params.reverse = reverse;

  const Tensor total = empty_of(x, {log_det ? batch : 0}, scalar_type_of<acc_t>);
  if (!log_det) {
    launch_flow_step<X, H>(params, nullptr, on.device(), on.stream());
    return {y, total};
  }
  if (form == CouplingForm::kAdditive) {
    launch_flow_step<X, H>(params, nullptr, on.device(), on.stream());
    arch::zero_async(writable<acc_t>(total), span_bytes(total), on.stream());
    return {y, total};
  }
  const Tensor parts = empty_of(x, {batch, (time + kFlowStepTile - 1) / kFlowStepTile}, ScalarType::Double);
  params.parts = writable<double>(parts);
  launch_flow_step<X, H>(params, writable<acc_t>(total), on.device(), on.stream());
  return {y, total};
}

}  // namespace

std::tuple<Tensor, Tensor> flow_step(
    const Tensor& x, const Tensor& hidden, const Tensor& end_weight, const OptionalTensor& end_bias,
    const OptionalTensor& weight, const OptionalTensor& early, int64_t n_early, const std::string& form,
    bool transform_first, bool reverse, bool log_det) {
  const CouplingForm parsed = parse_coupling_form(form);
  check_rank(x, "x", "[B, C, T]", 3);
  const int64_t channels = x.size(1);
  constexpr int64_t most = FlowStepParams<float, float>::kMaxChannels;
  FASTFLOW_CHECK(
      channels >= 2 && channels % 2 == 0 && channels <= most, "`x` must be [B, C, T] with C even and at most ", most,
      " for the cuda backend; got ", shape_string(x));
  check_flow_step(x, hidden, end_weight, end_bias, weight, early, n_early, parsed);
  return dispatch(x, "x", [&](auto type) -> std::tuple<Tensor, Tensor> {
    using X = typename decltype(type)::type;
    const auto with = [&](auto hidden_type) {
      using H = typename decltype(hidden_type)::type;
      return run<X, H>(
          x, hidden, end_weight, end_bias, weight, early, n_early, parsed, transform_first, reverse, log_det);
    };
    if constexpr (std::is_same_v<X, float>) {
      if (hidden.scalar_type() == ScalarType::Half) return with(Type<arch::half>{});
      if (hidden.scalar_type() == ScalarType::BFloat16) return with(Type<arch::bfloat16>{});
    }
    return with(Type<X>{});
  });
}

}  // namespace fastflow
