// Model of csrc/cuda/arch/torch.h: the tensors are on the CPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <arch/launch.cuh>

namespace fastflow::arch {

class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor&) {}
  const Device& device() const { return arch::device(0); }
  Stream stream() const { return nullptr; }
};

}  // namespace fastflow::arch
