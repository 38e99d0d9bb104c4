// What the models of the arch wrappers (arch/*.cuh) ask of the emulator. `at` is where the kernel called the wrapper.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

namespace fastflow::emulator {

using Location = std::source_location;

class EmulationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// barriers and exchanges
void sync_threads(const Location& at);
void sync_warp(const Location& at);
void named_barrier_sync(int id, int threads, const Location& at);
void named_barrier_arrive(int id, int threads, const Location& at);
uint64_t shuffle(uint64_t value, int lane, const Location& at);      // the value of `lane`
uint64_t shuffle_xor(uint64_t value, int mask, const Location& at);  // the value of lane ^ mask

// memory: each returns where the bytes are, after all checks
constexpr uint32_t kSharedBase = 1024;  // address of the dynamic shared memory, as on sm_90
const void* load_shared(uint32_t address, size_t bytes, const Location& at);
void* store_shared(uint32_t address, size_t bytes, const Location& at);
const void* load_global(const void* address, size_t bytes, const Location& at);
void* store_global(void* address, size_t bytes, const Location& at);
void stored_global(void* address);  // after the bytes have changed
void* atomic_begin(void* address, size_t bytes, const Location& at);
void atomic_end(void* address);
uint32_t load_acquire(const uint32_t* flag, const Location& at);
void add_release(uint32_t* flag, uint32_t value, const Location& at);
void wait_at_least(const uint32_t* flag, uint32_t value, const Location& at);
void fence(const Location& at);

// cp.async
void copy_async_16(uint32_t dst, const void* src, bool valid, const Location& at);
void copy_commit(const Location& at);
void copy_wait(int groups, const Location& at);

// matrix units
enum class Element : uint8_t { kHalf, kBfloat16, kTf32 };
void load_matrix_x4(uint32_t (&r)[4], uint32_t row, bool transposed, const Location& at);
void mma(Element type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Location& at);
void wgmma_fence(const Location& at);
void wgmma_commit(const Location& at);
void wgmma_wait(int groups, const Location& at);
void wgmma(Element type, int n, float* d, uint64_t a, uint64_t b, bool accumulate, const Location& at);

// mbarriers
void mbarrier_init(uint32_t barrier, uint32_t count, const Location& at);
void fence_mbarrier_init(const Location& at);
void mbarrier_arrive(uint32_t barrier, const Location& at);
void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes, const Location& at);
void mbarrier_arrive_cluster(uint32_t barrier, uint32_t rank, const Location& at);
void mbarrier_arrive_relaxed(uint32_t barrier, uint32_t rank, const Location& at);
void mbarrier_wait(uint32_t barrier, uint32_t parity, const Location& at);
void mbarrier_wait_cluster(uint32_t barrier, uint32_t parity, const Location& at);

// the copy engine
struct TensorMap {
  const char* base;
  int64_t dims[4];     // elements
  int64_t strides[4];  // bytes
  int64_t box[4];      // elements
  int element;         // bytes
};
TensorMap make_tensor_map(
    const void* base, int element, const uint64_t (&dims)[4], const uint64_t (&strides)[3], const uint32_t (&box)[4]);
void tma_load(
    uint32_t dst, const TensorMap& map, uint32_t barrier, const int (&corner)[4], uint32_t blocks, bool multicast,
    const Location& at);
void fence_proxy_async(const Location& at);
void fence_proxy_async_shared(const Location& at);

// clusters and registers
uint32_t cluster_rank();
uint32_t cluster_size();
void cluster_arrive(const Location& at);
void cluster_wait(const Location& at);
void cluster_sync(const Location& at);
void* store_shared_cluster(uint32_t address, uint32_t rank, size_t bytes, const Location& at);
void registers_release(int registers, const Location& at);
void registers_acquire(int registers, const Location& at);

// the host's side
struct Index {
  unsigned x, y, z;
};
struct Shape {
  Index grid;
  int threads, shared_bytes, cluster;
};
void run(const Shape& shape, const void* kernel, const std::function<void()>& body);
int resident_clusters(const Shape& shape);
void declare_memory(const void* base, size_t bytes);

struct DeviceModel {
  int capability, multiprocessors, shared_per_block, shared_per_multiprocessor;
};
const DeviceModel& device();

extern Index thread_index, block_index, grid_size, block_size;

}  // namespace fastflow::emulator
