// Compiled once per instruction set (see setup.py); each copy fills its own table.
#include "../kernels.h"

#include "actnorm.h"
#include "affine_coupling.h"
#include "flow_step.h"
#include "gate.h"
#include "invconv1x1.h"
#include "separable_wn.h"
#include "wn_gate_backward.h"
#include "wn_layer.h"

#define FASTFLOW_STRINGIZE_(x) #x
#define FASTFLOW_STRINGIZE(x) FASTFLOW_STRINGIZE_(x)

namespace fastflow::FASTFLOW_ISA {

template <class O>
constexpr TiledKernels<WnLayerParams<typename O::value>> wn_layer_kernels = {
    &wn_layer_packed_size<O>,  &wn_layer_panels<O>, &wn_layer_pack<O>,
    &wn_layer_scratch_size<O>, &wn_layer_tiles<O>,  &wn_layer<O>,
};

template <class T>
const Kernels<T>& table() {
  static constexpr Kernels<T> functions = [] {
    Kernels<T> all = {};
    all.isa = FASTFLOW_STRINGIZE(FASTFLOW_ISA);
    all.gate = &gate<T>;
    if constexpr (sizeof(T) != 2) {
      all.wn_layer = wn_layer_kernels<Plain<T>>;
      all.wn_gate_backward = {
          &wn_gate_backward_packed_size<T>,  &wn_gate_backward_panels<T>, &wn_gate_backward_pack<T>,
          &wn_gate_backward_scratch_size<T>, &wn_gate_backward_tiles<T>,  &wn_gate_backward<T>,
      };
    }
    if constexpr (sizeof(T) != 2) {
      all.separable_wn_vectors = &separable_wn_vectors<T>;
      all.separable_wn_scratch_size = &separable_wn_scratch_size<T>;
      all.separable_wn = &separable_wn<T>;
    }
    if constexpr (std::is_same_v<T, float> && kBf16Pairs) all.wn_layer_bf16 = &wn_layer_kernels<Bf16Pairs>;
    all.affine_coupling = &affine_coupling<T>;
    all.invconv1x1_tiles = &invconv1x1_tiles<T>;
    all.invconv1x1 = &invconv1x1<T>;
    all.log_abs_det = &log_abs_det;
    all.actnorm = &actnorm<T>;
    all.flow_step_tiles = &flow_step_tiles<T>;
    all.flow_step_scratch_size = &flow_step_scratch_size<T>;
    all.flow_step = &flow_step<T>;
    if constexpr (sizeof(T) != 2) {
      all.gate_backward = &gate_backward<T>;
      all.affine_coupling_backward = &affine_coupling_backward<T>;
      all.actnorm_backward = &actnorm_backward<T>;
    }
    return all;
  }();
  return functions;
}

template const Kernels<float>& table<float>();
template const Kernels<double>& table<double>();
template const Kernels<bfloat16>& table<bfloat16>();

}  // namespace fastflow::FASTFLOW_ISA
