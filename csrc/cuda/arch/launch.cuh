// What the host asks of the device: its size, and to run a kernel. Every failure throws std::runtime_error.
#pragma once

#include <arch/platform.cuh>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastflow::arch {

using Stream = cudaStream_t;

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next call of anyone would report it again
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Memory that kernels may touch. The hardware knows by itself; a model has to be told.
inline void declare_memory(const void* /*base*/, size_t /*bytes*/) {}

inline void zero_async(void* base, size_t bytes, Stream stream) {
  check(cudaMemsetAsync(base, 0, bytes, stream), "cudaMemsetAsync");
}

struct Device {
  int capability;                 // 75, 80, 90, ...
  int multiprocessors;            //
  int shared_per_block;           // bytes a block may have at most
  int shared_per_multiprocessor;  // bytes; each resident block takes 1 KiB more than it asks for
};

inline const Device& device(int index) {
  static std::mutex mutex;
  static std::vector<Device*> devices;  // never freed: references stay valid until the process ends
  const std::lock_guard<std::mutex> lock(mutex);
  if (index >= static_cast<int>(devices.size())) devices.resize(index + 1, nullptr);
  if (devices[index] == nullptr) {
    const auto attribute = [index](cudaDeviceAttr which) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, which, index), "cudaDeviceGetAttribute");
      return value;
    };
    devices[index] = new Device{
        10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
        attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
        attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
  }
  return *devices[index];
}

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

struct Launch {
  Grid grid;
  int threads = 0;
  int shared_bytes = 0;
  int cluster = 1;           // blocks along x that share a cluster
  bool cooperative = false;  // blocks wait for each other: start when all of them fit, or fail
};

// Keeps the attributes that a cudaLaunchConfig_t points to.
class LaunchConfig {
 public:
  LaunchConfig(const void* kernel, const Launch& launch, Stream stream) {
    constexpr int granted = 48 << 10;  // more shared memory than this has to be asked for
    if (launch.shared_bytes > granted) {
      // All there is, whatever this launch needs: another thread may be launching the same kernel with more.
      int index = 0;
      check(cudaGetDevice(&index), "cudaGetDevice");
      check(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device(index).shared_per_block),
          "cudaFuncSetAttribute");
    }
    config_.gridDim = dim3(launch.grid.x, launch.grid.y, launch.grid.z);
    config_.blockDim = dim3(launch.threads);
    config_.dynamicSmemBytes = launch.shared_bytes;
    config_.stream = stream;
    config_.attrs = attributes_;
    if (launch.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = launch.cluster;
      attribute.val.clusterDim.y = 1;
      attribute.val.clusterDim.z = 1;
    }
    if (launch.cooperative) {
      cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;
  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchAttribute attributes_[2]{};
  cudaLaunchConfig_t config_{};
};

template <class Params>
void launch(void (*kernel)(Params), const Params& params, const Launch& how, Stream stream) {
  const void* function = reinterpret_cast<const void*>(kernel);
  const LaunchConfig config(function, how, stream);
  void* arguments[] = {const_cast<Params*>(&params)};
  check(cudaLaunchKernelExC(config.get(), function, arguments), "cudaLaunchKernelExC");
}

// How many clusters (blocks where there are none) of such a launch the current device holds at once.
template <class Params>
int resident_clusters(void (*kernel)(Params), const Launch& how) {
  const void* function = reinterpret_cast<const void*>(kernel);
  const LaunchConfig config(function, how, nullptr);
  int count = 0;
  if (how.cluster > 1) {
    check(cudaOccupancyMaxActiveClusters(&count, function, config.get()), "cudaOccupancyMaxActiveClusters");
    return count;
  }
  check(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, function, how.threads, how.shared_bytes),
      "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  int index = 0;
  check(cudaGetDevice(&index), "cudaGetDevice");
  return count * device(index).multiprocessors;
}

}  // namespace fastflow::arch
