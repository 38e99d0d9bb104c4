// Copies of boxes of a tensor from global to shared memory by the copy engine (sm_90).
#pragma once

#include <arch/memory.cuh>
#include <arch/sm90.cuh>
// After platform.cuh, which has to see the toolkit first:
#include <cuda.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace fastflow::arch {

using TensorMap = CUtensorMap;  // 128 bytes, aligned to 64; for kernels as part of a __grid_constant__ parameter

// A tensor of `dims` elements, innermost first; strides[i] is the distance in bytes of dimension i + 1, a multiple of
// 16. A box is `box` elements, its innermost dimension 128 bytes. In shared memory it lies row after row, the 16-byte
// pieces of row r permuted: piece i is at i ^ (r % 8). What lies outside the tensor reads as zeros.
template <class T>
TensorMap make_tensor_map(
    const void* base, const uint64_t (&dims)[4], const uint64_t (&strides)[3], const uint32_t (&box)[4]) {
  static_assert(std::is_same_v<T, half> || std::is_same_v<T, bfloat16>);
  using Encode = CUresult(
      CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
      const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  // Asked from the runtime, so that the library loads where there is no driver.
  static Encode* const encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
      throw std::runtime_error("the CUDA driver has no cuTensorMapEncodeTiled");
    }
    return reinterpret_cast<Encode*>(entry);
  }();
  const cuuint64_t sizes[4] = {dims[0], dims[1], dims[2], dims[3]};
  const cuuint64_t steps[3] = {strides[0], strides[1], strides[2]};
  const cuuint32_t ones[4] = {1, 1, 1, 1};
  TensorMap map;
  const CUresult result = encode(
      &map, std::is_same_v<T, half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
      const_cast<void*>(base), sizes, steps, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("cuTensorMapEncodeTiled failed with error " + std::to_string(static_cast<int>(result)));
  }
  return map;
}

#ifdef __CUDACC__

// Loads the box whose first element is (c0, c1, c2, c3), innermost first; coordinates may be negative. `barrier` gets
// the box's bytes, zeros included.
__device__ __forceinline__ void tma_load(
    shared_t dst, const TensorMap* map, shared_t barrier, int c0, int c1, int c2, int c3) {
  FASTFLOW_PTX_SM90A(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(dst),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory");
}

// The same into every block of the cluster whose bit is set in `blocks`, with dst and barrier at the same addresses.
__device__ __forceinline__ void tma_load_multicast(
    shared_t dst, const TensorMap* map, shared_t barrier, int c0, int c1, int c2, int c3, uint16_t blocks) {
  FASTFLOW_PTX_SM90A(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(dst),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "h"(blocks) : "memory");
}

__device__ __forceinline__ void tma_prefetch_map(const TensorMap* map) {
  FASTFLOW_PTX_SM90A("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Between ordinary accesses and those of the copy engine or wgmma to the same memory, in either order, by the thread
// that made the ordinary ones (or has been told of them by a barrier or an acquire).
__device__ __forceinline__ void fence_proxy_async() { FASTFLOW_PTX_SM90A("fence.proxy.async;" :: : "memory"); }
// The same for this block's shared memory only: cheap, since it does not wait for stores to global memory.
__device__ __forceinline__ void fence_proxy_async_shared() {
  FASTFLOW_PTX_SM90A("fence.proxy.async.shared::cta;" :: : "memory");
}

#endif  // __CUDACC__

}  // namespace fastflow::arch
