// Compiled once per instruction set (see setup.py); each copy fills its own table.
#include "../kernels.h"

#include "actnorm.h"
#include "affine_coupling.h"
#include "gate.h"
#include "invconv1x1.h"
#include "wn_layer.h"

#define FASTFLOW_STRINGIZE_(x) #x
#define FASTFLOW_STRINGIZE(x) FASTFLOW_STRINGIZE_(x)

namespace fastflow::FASTFLOW_ISA {

template <class T>
const Kernels<T>& table() {
  static constexpr Kernels<T> functions = {
      FASTFLOW_STRINGIZE(FASTFLOW_ISA),
      &gate<T>,
      &wn_layer_packed_size<T>,
      &wn_layer_panels<T>,
      &wn_layer_pack<T>,
      &wn_layer_scratch_size<T>,
      &wn_layer_tiles<T>,
      &wn_layer<T>,
      &affine_coupling<T>,
      &invconv1x1_tiles<T>,
      &invconv1x1<T>,
      &actnorm<T>,
  };
  return functions;
}

template const Kernels<float>& table<float>();
template const Kernels<double>& table<double>();

}  // namespace fastflow::FASTFLOW_ISA
