// One plain struct per operation: the contract between host code (checks, allocation, dispatch) and kernels.
// Nothing in this file, and nothing in a kernel, knows about PyTorch.
//
// Manners: every pointer carries its shape; the innermost [channels, time] block of every [B, channels, time] array
// is dense, and `<name>_batch` is the distance in elements from one batch entry to the next. All offsets are 64 bits.
// A pointer that may be null says so.
#pragma once

#include <cstdint>

namespace fastflow {

// y = tanh(x[:, :G]) * sigmoid(x[:, G:])
template <class T>
struct GateParams {
  const T* x;  // [B, 2G, T]
  T* y;        // [B, G, T]
  int64_t x_batch;
  int64_t batch, channels, time;  // B, G, T
};

// One layer of the gated dilated convolution stack:
//   u = conv(h + input_bias) + cond_weight @ cond + conv_bias + cond_bias;   a = tanh(u[:, :G]) * sigmoid(u[:, G:])
//   r = res_skip_weight @ a + res_skip_bias;   h_out = (h + r[:, :R]) * res_scale * mask;   skip from r[:, R:]
template <class T>
struct WnLayerParams {
  const T* h;                // [B, C, T]
  const T* conv_weight;      // [2G, C, k]
  const T* conv_bias;        // [2G] or null
  const T* res_skip_weight;  // [R + S, G]
  const T* res_skip_bias;    // [R + S] or null
  const T* cond;             // [B, Cc, cond_time] or null
  const T* cond_weight;      // [2G, Cc], or null when cond is already projected (then Cc = 2G)
  const T* cond_bias;        // [2G] or null
  const T* input_bias;       // [B, C] or null; input_bias_batch is 0 when one row serves the whole batch
  const T* mask;             // [B, 1, T] or null
  T* h_out;                  // [B, R, T], R = C, or null when the layer has no residual rows (R = 0)
  T* skip;                   // [B, S, T]
  int64_t h_batch, cond_batch, input_bias_batch, mask_batch;
  int64_t batch, channels, gate_channels, skip_channels, time;  // B, C, G, S, T
  int64_t kernel_size, dilation, left_padding;
  int64_t cond_channels, cond_time;  // Cc; T, or 1 for conditioning that is constant in time
  T res_scale;
  bool skip_accumulate;  // skip += instead of skip =
  T skip_scale;          // applied to skip after that; 1 for a single layer
  bool skip_masked;      // multiply skip by mask after that
};

// y = (x, shift, log_scale) transformed elementwise, times mask; log_det[b] = sum over C and T of the log scale times
// mask.
enum class CouplingForm : int32_t { kExp, kSigmoid, kAdditive };

template <class T>
struct AffineCouplingParams {
  const T* x;           // [B, C, T]
  const T* shift;       // [B, C, T]
  const T* log_scale;   // [B, C, T]; null for the additive form
  const T* mask;        // [B, 1, T] or null
  T* y;                 // [B, C, T]
  double* row_log_det;  // [B, C]: sum over T, to be summed over C by the host
  int64_t x_batch, shift_batch, log_scale_batch, mask_batch;
  int64_t batch, channels, time;
  CouplingForm form;
  bool reverse;
};

// y[b, :, t] = weight @ x[b, :, t] * mask[b, 0, t]
template <class T>
struct InvConv1x1Params {
  const T* x;       // [B, C, T]
  const T* weight;  // [C, C]
  const T* mask;    // [B, 1, T] or null
  T* y;             // [B, C, T]
  int64_t x_batch, mask_batch;
  int64_t batch, channels, time;
};

// y = scale * (x + loc) * mask; reverse: y = (x / scale - loc) * mask
template <class T>
struct ActNormParams {
  const T* x;      // [B, C, T]
  const T* loc;    // [C]
  const T* scale;  // [C]
  const T* mask;   // [B, 1, T] or null
  T* y;            // [B, C, T]
  int64_t x_batch, mask_batch;
  int64_t batch, channels, time;
  bool reverse;
};

}  // namespace fastflow
