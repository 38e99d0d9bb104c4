// The operations of the namespace fastflow_cpu. Schemas, shapes and meanings: fastflow/ops/registry.py.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "host.h"

namespace fastflow {

Tensor gate(const Tensor& x);

std::tuple<Tensor, Tensor> wn_layer(
    const Tensor& h, const Tensor& conv_weight, const OptionalTensor& conv_bias, const Tensor& res_skip_weight,
    const OptionalTensor& res_skip_bias, const OptionalTensor& cond, const OptionalTensor& cond_weight,
    const OptionalTensor& cond_bias, const OptionalTensor& input_bias, const OptionalTensor& mask, int64_t dilation,
    bool causal, double res_scale, bool residual);

std::tuple<Tensor, Tensor> wn_layer_keeping_u(
    const Tensor& h, const Tensor& conv_weight, const OptionalTensor& conv_bias, const Tensor& res_skip_weight,
    const OptionalTensor& res_skip_bias, const OptionalTensor& cond, const OptionalTensor& cond_weight,
    const OptionalTensor& cond_bias, const OptionalTensor& input_bias, const OptionalTensor& mask, int64_t dilation,
    bool causal, double res_scale, bool residual);

std::tuple<Tensor, Tensor> wn_gate_backward(const Tensor& grad_r, const Tensor& u, const Tensor& res_skip_weight);

Tensor wn(
    const Tensor& h, const std::vector<Tensor>& conv_weights, const std::vector<Tensor>& conv_biases,
    const std::vector<Tensor>& res_skip_weights, const std::vector<Tensor>& res_skip_biases, const OptionalTensor& cond,
    const std::vector<Tensor>& cond_weights, const std::vector<Tensor>& cond_biases,
    const std::vector<Tensor>& input_biases, const OptionalTensor& mask, const std::vector<int64_t>& dilations,
    bool causal, double res_scale, double skip_scale, bool last_residual);

Tensor separable_wn(
    const Tensor& h, const Tensor& cond, const Tensor& scale, const Tensor& shift, const Tensor& taps,
    const Tensor& weight, const Tensor& bias, const Tensor& res_weight, const Tensor& res_bias);

std::tuple<Tensor, Tensor> affine_coupling(
    const Tensor& x, const Tensor& shift, const OptionalTensor& log_scale, const OptionalTensor& mask,
    const std::string& form, bool reverse);

std::tuple<Tensor, Tensor> invconv1x1(const Tensor& x, const Tensor& weight, const OptionalTensor& mask, bool log_det);

std::tuple<Tensor, Tensor> actnorm(
    const Tensor& x, const Tensor& loc, const Tensor& scale, const OptionalTensor& mask, bool reverse);

std::tuple<Tensor, Tensor> flow_step(
    const Tensor& x, const Tensor& hidden, const Tensor& end_weight, const OptionalTensor& end_bias,
    const OptionalTensor& weight, const OptionalTensor& early, int64_t n_early, const std::string& form,
    bool transform_first, bool reverse, bool log_det);

Tensor gate_backward(const Tensor& grad, const Tensor& x);

std::vector<Tensor> affine_coupling_backward(
    const Tensor& grad, const Tensor& grad_log_det, const Tensor& x, const Tensor& shift,
    const OptionalTensor& log_scale, const OptionalTensor& mask, const std::string& form, bool reverse);

std::vector<Tensor> actnorm_backward(
    const Tensor& grad, const Tensor& grad_log_det, const Tensor& x, const Tensor& loc, const Tensor& scale,
    const OptionalTensor& mask, bool reverse);

}  // namespace fastflow
