// What csrc/cpu/kernels/ offers to the host code: one table of functions per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../params.h"
#include "bfloat16.h"

namespace fastflow {

// An operation that first re-lays weights into `packed` (`packed_size` bytes; tasks: `panels`) and then runs over tiles
// of time (tasks: B times `tiles`), each thread with its own `scratch` of `scratch_size` bytes. Both buffers are
// aligned to 64 bytes.
template <class Params>
struct TiledKernels {
  int64_t (*packed_size)(const Params&);
  int64_t (*panels)(const Params&);
  void (*pack)(const Params&, int64_t begin, int64_t end, void* packed);
  int64_t (*scratch_size)(const Params&);
  int64_t (*tiles)(const Params&);
  void (*run)(const Params&, int64_t begin, int64_t end, const void* packed, void* scratch);
};

// Every function works on the tasks [begin, end) of its operation, so that the host can share them out to threads.
// Which task does what never depends on the number of threads: results are the same bits with one thread or many.
template <class T>
struct Kernels {
  const char* isa;

  // Tasks: B * G rows.
  void (*gate)(const GateParams<T>&, int64_t begin, int64_t end);

  TiledKernels<WnLayerParams<T>> wn_layer;
  // The same with products of bfloat16 and sums in float32, or null where they would gain nothing.
  const TiledKernels<WnLayerParams<T>>* wn_layer_bf16;
  TiledKernels<WnGateBackwardRowParams<T>> wn_gate_backward;

  // Tasks: B batch entries times separable_wn_vectors vectors of time; neighbours are done together. Each thread has
  // its own `scratch` of separable_wn_scratch_size elements, aligned to 64 bytes. Null for bfloat16.
  int64_t (*separable_wn_vectors)(const SeparableWnParams<T>&);
  int64_t (*separable_wn_scratch_size)(const SeparableWnParams<T>&);
  void (*separable_wn)(const SeparableWnParams<T>&, int64_t begin, int64_t end, T* scratch);

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

  // Tasks: B * G, B * C and B * C rows; null for bfloat16.
  void (*gate_backward)(const GateBackwardParams<T>&, int64_t begin, int64_t end);
  void (*affine_coupling_backward)(const AffineCouplingBackwardParams<T>&, int64_t begin, int64_t end);
  void (*actnorm_backward)(const ActNormBackwardParams<T>&, int64_t begin, int64_t end);
};

// The table for the best instruction set that this processor has; T is float, double or bfloat16 (for which the
// functions of wn_layer are null). The environment variable
// FASTFLOW_CPU_ISA (baseline, avx2, avx512 or avx512_bf16) asks for another one; it is read once.
template <class T>
const Kernels<T>& kernels();

}  // namespace fastflow
