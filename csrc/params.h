// One plain struct per operation: the contract between host code (checks, allocation, dispatch) and kernels.
// Nothing in this file, and nothing in a kernel, knows about PyTorch.
//
// Manners: every pointer carries its shape; the innermost [channels, time] block of every [B, channels, time] array
// is dense, and `<name>_batch` is the distance in elements from one batch entry to the next. All offsets are 64 bits.
// A pointer that may be null says so.
#pragma once

#include <cstdint>
#include <type_traits>

#ifndef __CUDACC__
#define __host__
#define __device__
#endif

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
// Where the conditioning has a weight for each of P phases, time lies phase by phase in all arrays: T stands for
// [P, F], and step f * P + p, which frame f of cond conditions, is element p * F + f. Else P = 1 and F = T.
template <class T>
struct WnLayerParams {
  const T* h;                        // [B, C, T]
  const T* conv_weight;              // [2G, C, k]
  const T* conv_bias;                // [2G] or null
  const T* res_skip_weight;          // [R + S, G]
  const T* res_skip_bias;            // [R + S] or null
  const T* cond;                     // [B, Cc, cond_time] or null
  const T* cond_weight;              // [P, 2G, Cc], or null when cond is already projected (then Cc = 2G)
  const uint16_t* cond_weight_bf16;  // its bits in bfloat16 instead, or null: those of many phases are not widened
  const T* cond_bias;                // [2G] or, with cond_bias_phase = 2G, [P, 2G]; or null
  const T* input_bias;               // [B, C] or null; input_bias_batch is 0 when one row serves the whole batch
  const T* mask;                     // [B, 1, T] or null
  T* h_out;                          // [B, R, T], R = C, or null when the layer has no residual rows (R = 0)
  T* skip;                           // [B, S, T]
  T* u;                              // [B, 2G, T] or null: where to keep the gate's input for a backward
  int64_t h_batch, cond_batch, input_bias_batch, mask_batch, cond_bias_phase;
  int64_t batch, channels, gate_channels, skip_channels, time;  // B, C, G, S, T
  int64_t phases, frames;                                       // P, F
  int64_t kernel_size, dilation, left_padding;
  int64_t cond_channels, cond_time;  // Cc; F, or with one phase 1 for conditioning that is constant in time
  T res_scale;
  bool skip_accumulate;  // skip += instead of skip =
  T skip_scale;          // applied to skip after that; 1 for a single layer
  bool skip_masked;      // multiply skip by mask after that
};

// Backward of one layer's second product and gate:
//   grad_u = gate'(u) * (res_skip_weight^T grad_r),  a = gate(u), for the products that PyTorch does with them.
template <class T>
struct WnGateBackwardRowParams {
  const T* grad_r;           // [B, R + S, T]: gradients of the second product's rows
  const T* u;                // [B, 2G, T], dense
  const T* res_skip_weight;  // [R + S, G]
  T* grad_u;                 // [B, 2G, T]
  T* a;                      // [B, G, T]
  int64_t grad_r_batch;
  int64_t batch, rows, gate_channels, time;  // B, R + S, G, T
};

// One layer of SqueezeWave's stack, where x = scale * h + shift, and zero beyond the ends:
//   d = taps over x, channel by channel;   u = weight @ d + bias + cond;   h_out = h + res_weight @ gate(u) + res_bias
template <class T>
struct SeparableWnParams {
  const T* h;           // [B, C, T]
  const T* cond;        // [B, 2C, F]; each frame serves T / F steps
  const T* scale;       // [C]
  const T* shift;       // [C]
  const T* taps;        // [C, 3]
  const T* weight;      // [2C, C]
  const T* bias;        // [2C]
  const T* res_weight;  // [C, C]
  const T* res_bias;    // [C]
  T* h_out;             // [B, C, T], not the memory of h
  int64_t h_batch, cond_batch;
  int64_t batch, channels, time, frames;  // B, C, T, F
};

// The stack of layers as the kernels for GPUs take it. Time comes before channels in every array: [B, T, C].
// Layer l reads h (l = 0) or states[(l - 1) % 2] and writes states[l % 2]; skips are summed in one array.
//
// Local conditioning may come in frames of P steps, with a weight for each of their phases: step t is conditioned by
// frame t / P through weight t % P. Without, every step is a frame and P is 1.
template <class T>
using accumulator_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

enum class WnCond : int32_t {
  kNone,
  kLocal,            // cond [B, T / P, Cc] times cond_weight: more of the same matrix product
  kGlobal,           // cond [B, 1, Cc] times cond_weight: part of gate_add
  kProjected,        // cond [B, T, 2G], added
  kProjectedGlobal,  // cond [B, 1, 2G]: part of gate_add
};

template <class T>
struct WnLayerArrays {
  const T* conv_weight;      // [2G, k, C]
  const T* conv_bias;        // [2G] or null; in gate_add
  const T* res_skip_weight;  // [R + S, G], R = C or 0: WnParams::residual_rows
  const T* res_skip_bias;    // [R + S] or null
  const T* cond;             // as WnCond says, or null; strides cond_batch, cond_step
  const T* cond_weight;      // [P, 2G, Cc] or null
  const T* cond_bias;        // [2G], [P, 2G] where cond_bias_by_phase, or null; in gate_add
  const T* input_bias;       // [B or 1, C] or null; in tap_add
  int32_t dilation;
  int32_t left_padding;  // zeros before the first step
  bool cond_bias_by_phase;
};

template <class T>
struct WnParams {
  static constexpr int kMaxLayers = 32;  // of one launch
  using acc_t = accumulator_t<T>;

  WnLayerArrays<T> layer[kMaxLayers];
  const T* h;       // [B, T, C], strides h_batch, h_step
  const T* mask;    // [B, T], stride mask_batch, or null
  T* states[2];     // [B, T, C] each, dense; the second is null where fewer than two layers write one
  T* skip;          // [B, T, S], dense, or null where S = 0
  acc_t* gate_add;  // [layers, vector_batch, P, 2G]: what is added to u at every step, written by wn_vectors
  acc_t* tap_add;   // [layers, tap_batch, k, 2G]: the input bias's share of each tap, or null
  uint32_t* done;   // [layers, B, P, tiles]: how many publishers of a tile have finished; null for one layer
  int64_t h_batch, h_step, cond_batch, cond_step, mask_batch;
  int32_t vector_batch, tap_batch;  // B, or 1 where all items share one vector
  int32_t layers, batch, time, channels, gate_channels, skip_channels, kernel_size, cond_channels;
  int32_t phases, frames;  // P, a divisor of time; T / P
  WnCond cond;
  bool last_residual;    // whether the last layer writes its state too
  bool skip_accumulate;  // whether the first layer adds to skip, instead of writing it
  bool skip_masked;      // multiply skip by mask at the end
  acc_t res_scale;
  acc_t skip_scale;  // applied to skip by the last layer

  __host__ __device__ int32_t residual_rows(int32_t l) const { return l + 1 < layers || last_residual ? channels : 0; }
  __host__ __device__ const acc_t* gate_add_of(int32_t l, int32_t b, int32_t phase) const {
    return gate_add + ((l * int64_t(vector_batch) + b % vector_batch) * phases + phase) * 2 * gate_channels;
  }
};

// Backward of one layer's gate: u is computed again, then
//   grad_u = gate'(u) * (res_skip_weight^T grad_r),  a = gate(u), for the products that PyTorch does with them.
template <class T>
struct WnGateBackwardParams {
  WnParams<T> forward;  // one layer; states and skip are null, last_residual as in the forward
  const T* grad_r;      // [B, T, R + S], dense: gradients of the second product's rows
  T* grad_u;            // [B, T, 2G], dense
  T* a;                 // [B, T, G], dense
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
  double* row_log_det;  // [B, C, parts]: sums over parts of T; the CPU makes one, GPUs several or none (null)
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

// What kernels for GPUs take beyond that: log-determinants and gradients are computed beside, in launches of their own
// or by blocks of the same one. Gradients have the strides of dense arrays unless a `_batch` is given.

// out[b] = sum of parts[b, :]
template <class A>
struct SumPartsParams {
  const double* parts;  // [B, count]
  A* out;               // [B]
  int64_t batch, count;
};

template <class T>
struct GateBackwardParams {
  const T* x;     // [B, 2G, T]
  const T* grad;  // [B, G, T]
  T* grad_x;      // [B, 2G, T]
  int64_t x_batch, grad_batch;
  int64_t batch, channels, time;  // B, G, T
};

template <class T>
struct AffineCouplingBackwardParams {
  AffineCouplingParams<T> forward;       // y and row_log_det are null
  const T* grad;                         // [B, C, T]
  const accumulator_t<T>* grad_log_det;  // [B]
  T* grad_x;                             // [B, C, T]
  T* grad_shift;                         // [B, C, T]
  T* grad_log_scale;                     // [B, C, T]; null for the additive form
  int64_t grad_batch;
};

template <class T>
struct InvConv1x1ForwardParams {
  InvConv1x1Params<T> op;     // its weight is null:
  const void* weight;         // [C, C] of T, or of accumulator_t<T> where weight_is_wide
  accumulator_t<T>* log_det;  // [B] or null
  double* matrix;             // [C, C] to work in, for log_det of a weight that shared memory does not hold
  bool weight_is_wide;
  bool transposed;  // multiply by the weight's transpose
};

// grad_weight = sum over b and t of grad mask x^T, plus (with log_det) weight^-T times the sum over b of grad_log_det
// times steps. The gradient of x is a product with the transposed weight; the kernel for few channels makes it too.
template <class T>
struct InvConv1x1BackwardParams {
  InvConv1x1ForwardParams<T> forward;    // y and log_det are null; matrix is [C, C] with log_det, else null
  const T* grad;                         // [B, C, T]
  const accumulator_t<T>* grad_log_det;  // [B], or null without log_det
  T* grad_x;                             // [B, C, T]
  void* grad_weight;                     // [C, C] of the weight's type
  accumulator_t<T>* parts;               // [count, C, C]
  double* inverse;                       // [C, C], or null without log_det
  double* steps;                         // [B], or null without log_det
  int64_t grad_batch;
  int64_t count;  // of parts
};

template <class T>
struct ActNormForwardParams {
  ActNormParams<T> op;
  accumulator_t<T>* log_det;  // [B]
};

template <class T>
struct ActNormBackwardParams {
  ActNormParams<T> forward;              // y is null
  const T* grad;                         // [B, C, T]
  const accumulator_t<T>* grad_log_det;  // [B]
  T* grad_x;                             // [B, C, T]
  T* grad_loc;                           // [C]
  T* grad_scale;                         // [C]
  double* parts;                         // [C, B, tiles, 2]
  double* steps;                         // [B]
  int64_t grad_batch;
};

// The step between two flows: end convolution, coupling, 1x1 convolution and early outputs. X is the type of the flow,
// H that of the network in the coupling: X, or a 16-bit type where X is float.
//   z = x with its moved half coupled;   y = [early; z[:n_early]; weight @ z[n_early:]]
template <class X, class H>
struct FlowStepParams {
  const X* x;           // [B, C, T], C at most kMaxChannels
  const H* hidden;      // [B, S, T], any strides, one of channel and step is 1
  const H* end_weight;  // [rows, S]; rows = C, or C / 2 for the additive form
  const H* end_bias;    // [rows] or null
  const X* weight;      // [C - n_early, C - n_early] or null
  const X* early;       // [B, E, T] or null
  X* y;                 // [B, E + C, T]
  double* parts;        // [B, tiles]: parts of the log-determinant, or null
  int64_t x_batch, hidden_batch, hidden_channel, hidden_step, early_batch;
  int64_t batch, time;
  int32_t channels, hidden_channels, early_channels, n_early;  // C, S, E
  CouplingForm form;
  bool transform_first;  // the first half moves, not the second
  bool reverse;

  static constexpr int32_t kMaxChannels = 32;
};

}  // namespace fastflow
