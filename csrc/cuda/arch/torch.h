// What the host side asks PyTorch about a tensor's device.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <arch/launch.cuh>

namespace fastflow::arch {

// Makes the tensor's device the current one for as long as it lives; kernels go to its current stream.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor& tensor)
      : guard_(tensor.get_device_index()), device_(arch::device(tensor.get_device_index())) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<Stream>(stream);
  }

  const Device& device() const { return device_; }
  Stream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  const Device& device_;
  Stream stream_ = nullptr;
};

}  // namespace fastflow::arch
