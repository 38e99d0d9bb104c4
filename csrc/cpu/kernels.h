// What csrc/cpu/kernels/ offers to the host code: one table of functions per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../params.h"
#include "bfloat16.h"

namespace fastflow {

// Every function works on the tasks [begin, end) of its operation, so that the host can share them out to threads.
// Which task does what never depends on the number of threads: results are the same bits with one thread or many.
template <class T>
struct Kernels {
  const char* isa;

  // Tasks: B * G rows.
  void (*gate)(const GateParams<T>&, int64_t begin, int64_t end);

  // The weights of a layer are first re-laid into `packed` (wn_layer_packed_size elements; tasks: wn_layer_panels),
  // then the layer runs over tiles of time (tasks: wn_layer_tiles), each thread with its own `scratch` of
  // wn_layer_scratch_size elements. Both buffers are aligned to 64 bytes.
  int64_t (*wn_layer_packed_size)(const WnLayerParams<T>&);
  int64_t (*wn_layer_panels)(const WnLayerParams<T>&);
  void (*wn_layer_pack)(const WnLayerParams<T>&, int64_t begin, int64_t end, T* packed);
  int64_t (*wn_layer_scratch_size)(const WnLayerParams<T>&);
  int64_t (*wn_layer_tiles)(const WnLayerParams<T>&);
  void (*wn_layer)(const WnLayerParams<T>&, int64_t begin, int64_t end, const T* packed, T* scratch);

  // Tasks: B * C rows.
  void (*affine_coupling)(const AffineCouplingParams<T>&, int64_t begin, int64_t end);
  // Tasks: B batch entries times invconv1x1_tiles tiles of time. `weight` [C, C] is in the type to compute in;
  // the parameters' is null.
  int64_t (*invconv1x1_tiles)(const InvConv1x1Params<T>&);
  void (*invconv1x1)(const InvConv1x1Params<T>&, int64_t begin, int64_t end, const accumulator_t<T>* weight);
  // log |det matrix| [n, n]; the matrix is lost, pivots [n] are to work in.
  double (*log_abs_det)(double* matrix, int64_t n, int64_t* pivots);
  // Tasks: B * C rows.
  void (*actnorm)(const ActNormParams<T>&, int64_t begin, int64_t end);

  // Tasks: B batch entries times flow_step_tiles tiles of time. The weights are in the type to compute in,
  // those of the parameters null; each thread has its own `scratch` of flow_step_scratch_size elements, aligned to 64
  // bytes.
  int64_t (*flow_step_tiles)(const FlowStepParams<T, T>&);
  int64_t (*flow_step_scratch_size)(const FlowStepParams<T, T>&);
  void (*flow_step)(
      const FlowStepParams<T, T>&, int64_t begin, int64_t end, const accumulator_t<T>* end_weight,
      const accumulator_t<T>* weight, accumulator_t<T>* scratch);
};

// The table for the best instruction set that this processor has; T is float, double or bfloat16 (for which the
// functions of wn_layer are null). The environment variable
// FASTFLOW_CPU_ISA (baseline, avx2 or avx512) asks for another one; it is read once.
template <class T>
const Kernels<T>& kernels();

}  // namespace fastflow
