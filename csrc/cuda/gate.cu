#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <stdexcept>
#include <type_traits>

#include "kernels/gate.cuh"
#include "ops.h"

namespace fastflow {
namespace {

using torch::stable::Tensor;

template <class scalar_t>
void launch(const Tensor& x, const Tensor& y) {
  GateParams<scalar_t> params;
  params.x = static_cast<const scalar_t*>(x.const_data_ptr());
  params.y = static_cast<scalar_t*>(y.mutable_data_ptr());
  params.x_batch = x.size(1) * x.size(2);
  params.batch = y.size(0);
  params.channels = y.size(1);
  params.time = y.size(2);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  launch_gate(params, static_cast<cudaStream_t>(stream));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

Tensor gate(const Tensor& x) {
  if (x.dim() != 3 || x.size(1) % 2 != 0) {
    throw std::invalid_argument("`x` must be [B, 2G, T] with an even number of channels");
  }
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor dense = torch::stable::contiguous(x);
  const Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1) / 2, x.size(2)});
  if (y.numel() == 0) return y;
  THO_DISPATCH_V2(
      x.scalar_type(), "gate", AT_WRAP([&] { launch<scalar_t>(dense, y); }), torch::headeronly::ScalarType::Float,
      torch::headeronly::ScalarType::Double, torch::headeronly::ScalarType::Half,
      torch::headeronly::ScalarType::BFloat16);
  return y;
}

}  // namespace fastflow
