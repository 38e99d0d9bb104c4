#include <arch/barrier.cuh>
#include <arch/cluster.cuh>
#include <arch/copy.cuh>
#include <arch/launch.cuh>
#include <arch/mbarrier.cuh>
#include <arch/mma.cuh>
#include <arch/registers.cuh>
#include <arch/tma.cuh>
#include <arch/wgmma.cuh>

#include "toys.h"

namespace fastflow::toys {

using arch::shared_t;
using emulator::ToyArguments;
using emulator::ToyShape;

// --------------------------------------------------------------------------------------------------- numbers, one warp

// x [n] float -> [n] its tf32, [n] its tanh_approx; numbers: n
__global__ void convert(const ToyArguments p) {
  for (int i = arch::thread_index(); i < p.numbers[0]; i += static_cast<int>(blockDim.x)) {
    const float x = arch::load_global<float>(p.array<float>(0) + i);
    arch::store_global(p.array<uint32_t>(1) + i, arch::round_tf32(std::bit_cast<uint32_t>(x)));
    arch::store_global(p.array<float>(2) + i, arch::tanh_approx(x));
  }
}

// x [n, 2] float -> [n] packed, [n, 2] float: unpacked again; numbers: n
template <class T>
__global__ void pack(const ToyArguments p) {
  for (int i = arch::thread_index(); i < p.numbers[0]; i += static_cast<int>(blockDim.x)) {
    const float lo = arch::load_global<float>(p.array<float>(0) + 2 * i);
    const float hi = arch::load_global<float>(p.array<float>(0) + 2 * i + 1);
    const uint32_t packed = arch::pack2<T>(lo, hi);
    arch::store_global(p.array<uint32_t>(1) + i, packed);
    float back[2];
    arch::unpack2<T>(packed, back[0], back[1]);
    for (int j = 0; j < 2; ++j) arch::store_global(p.array<float>(2) + 2 * i + j, back[j]);
  }
}

// x [32] float, y [32] double -> [32, 3]: x of the lane numbers[0] further on, x of lane ^ numbers[1], the sum;
// [32] double: the sum of y
__global__ void exchange(const ToyArguments p) {
  const int lane = arch::thread_index();
  const float x = arch::load_global<float>(p.array<float>(0) + lane);
  const double y = arch::load_global<double>(p.array<double>(1) + lane);
  float* out = p.array<float>(2) + 3 * lane;
  arch::store_global(out, arch::shuffle(x, (lane + p.numbers[0]) % 32));
  arch::store_global(out + 1, arch::shuffle_xor(x, p.numbers[1]));
  arch::store_global(out + 2, arch::warp_sum(x));
  arch::store_global(p.array<double>(3) + lane, arch::warp_sum(y));
}

// x [32] rows of 16 bytes, place [32]: at which row of shared memory each goes -> [32, 4] registers;
// numbers: whether transposed
__global__ void load_matrix(const ToyArguments p) {
  const int lane = arch::thread_index();
  const shared_t row = arch::shared_memory() + 16 * arch::load_global<int32_t>(p.array<int32_t>(1) + lane);
  arch::store_shared(row, arch::load_global<uint4>(p.array<uint4>(0) + lane));
  arch::sync_warp();
  uint32_t r[4];
  if (p.numbers[0]) {
    arch::load_matrix_x4_trans(r, row);
  } else {
    arch::load_matrix_x4(r, row);
  }
  for (int i = 0; i < 4; ++i) arch::store_global(p.array<uint32_t>(2) + 4 * lane + i, r[i]);
}

// a [32, 4], b [32, 2], d [32, 4]: the registers of each lane; d += a b
template <class T>
__global__ void product(const ToyArguments p) {
  const int lane = arch::thread_index();
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = arch::load_global<uint32_t>(p.array<uint32_t>(0) + 4 * lane + i);
  for (int i = 0; i < 2; ++i) b[i] = arch::load_global<uint32_t>(p.array<uint32_t>(1) + 2 * lane + i);
  for (int i = 0; i < 4; ++i) d[i] = arch::load_global<float>(p.array<float>(2) + 4 * lane + i);
  arch::mma<T>(d, a, b);
  for (int i = 0; i < 4; ++i) arch::store_global(p.array<float>(2) + 4 * lane + i, d[i]);
}

// ----------------------------------------------------------------------------------------------------------- one block

// x [threads] uint32 -> [threads]: numbers[0] times, each thread adds what the one numbers[1] further on has
__global__ void rotate(const ToyArguments p) {
  const int thread = arch::thread_index(), threads = static_cast<int>(blockDim.x);
  auto value = arch::load_global<uint32_t>(p.array<uint32_t>(0) + thread);
  for (int i = 0; i < p.numbers[0]; ++i) {
    arch::store_shared(arch::shared_memory() + 4 * thread, value);
    arch::sync_threads();
    value += arch::load_shared<uint32_t>(arch::shared_memory() + 4 * ((thread + p.numbers[1]) % threads));
    arch::sync_threads();
  }
  arch::store_global(p.array<uint32_t>(1) + thread, value);
}

// x [rows, threads] of 16 bytes, valid [rows, threads] -> [rows, threads]: of the opposite thread, zeros where not
// valid; numbers: rows. Two rows are under way at a time.
__global__ void copies(const ToyArguments p) {
  const int thread = arch::thread_index(), threads = static_cast<int>(blockDim.x), rows = p.numbers[0];
  const auto start = [&](int row) {
    if (row < rows) {
      const int i = row * threads + thread;
      const bool valid = arch::load_global<int32_t>(p.array<int32_t>(1) + i) != 0;
      arch::copy_async_16(arch::shared_memory() + 16 * (row % 2 * threads + thread), p.array<uint4>(0) + i, valid);
    }
    arch::copy_commit();
  };
  start(0);
  for (int row = 0; row < rows; ++row) {
    start(row + 1);
    arch::copy_wait<1>();
    arch::sync_threads();
    const int other = threads - 1 - thread;
    const uint4 value = arch::load_shared<uint4>(arch::shared_memory() + 16 * (row % 2 * threads + other));
    arch::store_global(p.array<uint4>(2) + row * threads + thread, value);
    arch::sync_threads();
  }
}

// Warp 0 hands rows over to warp 1 through a ring of two. x [rows, 32] uint32 -> [rows, 32]; numbers: rows
__global__ void pipeline(const ToyArguments p) {
  const int thread = arch::thread_index(), lane = thread % 32;
  const shared_t full = arch::shared_memory(), empty = full + 16, ring = full + 32;
  if (thread == 0) {
    for (int i = 0; i < 2; ++i) {
      arch::mbarrier_init(full + 8 * i, 32);
      arch::mbarrier_init(empty + 8 * i, 32);
    }
  }
  arch::sync_threads();
  for (int row = 0; row < p.numbers[0]; ++row) {
    const int stage = row % 2, parity = row / 2 % 2;
    const shared_t place = ring + 128 * stage + 4 * lane;
    if (thread < 32) {
      const auto value = arch::load_global<uint32_t>(p.array<uint32_t>(0) + 32 * row + lane);
      arch::mbarrier_wait(empty + 8 * stage, parity ^ 1);
      arch::store_shared(place, value);
      arch::mbarrier_arrive(full + 8 * stage);
    } else {
      arch::mbarrier_wait(full + 8 * stage, parity);
      const auto value = arch::load_shared<uint32_t>(place ^ 4);  // another lane's
      arch::mbarrier_arrive(empty + 8 * stage);
      arch::store_global(p.array<uint32_t>(1) + 32 * row + lane, value);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------- blocks

// x [3] of float, double and uint32 in 8 bytes each: every thread adds 1 to each -> [blocks, threads] uint32: what the
// last one was before
__global__ void tickets(const ToyArguments p) {
  const int thread = arch::thread_index(), item = static_cast<int>(blockIdx.x * blockDim.x) + thread;
  char* x = p.array<char>(0);
  arch::atomic_add(reinterpret_cast<float*>(x), 1.0f);
  arch::atomic_add(reinterpret_cast<double*>(x + 8), 1.0);
  const uint32_t ticket = arch::atomic_add(reinterpret_cast<uint32_t*>(x + 16), 1u);
  arch::store_global(p.array<uint32_t>(1) + item, ticket);
}

// The block that comes last sums what all have stored. x [blocks, 32] float -> [blocks, 32] float: x doubled,
// counter [1], sum [1]
__global__ void last_block(const ToyArguments p) {
  const int lane = arch::thread_index(), blocks = static_cast<int>(gridDim.x);
  float* doubled = p.array<float>(1);
  const int item = 32 * static_cast<int>(blockIdx.x) + lane;
  arch::store_global(doubled + item, 2 * arch::load_global<float>(p.array<float>(0) + item));
  arch::sync_warp();
  uint32_t before = 0;
  if (lane == 0) {
    arch::fence();
    before = arch::atomic_add(p.array<uint32_t>(2), 1u);
  }
  if (arch::shuffle(before, 0) != gridDim.x - 1) return;
  if (lane == 0) arch::fence();
  arch::sync_warp();
  float sum = 0;
  for (int i = 0; i < blocks; ++i) sum += arch::load_global<float>(doubled + 32 * i + lane);
  sum = arch::warp_sum(sum);
  if (lane == 0) arch::store_global(p.array<float>(3), sum);
}

// Block after block adds to all that is there. x [threads] uint32, in place; flag [1]
__global__ void in_turn(const ToyArguments p) {
  const int thread = arch::thread_index();
  uint32_t *x = p.array<uint32_t>(0) + thread, *flag = p.array<uint32_t>(1);
  if (thread == 0) arch::wait_at_least(flag, blockIdx.x);
  arch::sync_threads();
  arch::store_global(x, 2 * arch::load_global<uint32_t>(x) + blockIdx.x);
  arch::sync_threads();
  if (thread == 0) arch::add_release(flag, 1);
}

// Each block of a cluster puts its x into the one before it. x [blocks, threads] uint32 -> [blocks, threads] uint32,
// [blocks] its rank
__global__ void ring(const ToyArguments p) {
  const int thread = arch::thread_index(), item = static_cast<int>(blockIdx.x * blockDim.x) + thread;
  const uint32_t size = arch::cluster_size(), before = (arch::cluster_rank() + size - 1) % size;
  const shared_t place = arch::shared_memory() + 4 * thread;
  arch::cluster_sync();
  arch::store_shared_cluster(place, before, arch::load_global<uint32_t>(p.array<uint32_t>(0) + item));
  arch::cluster_arrive();
  arch::cluster_wait();
  arch::store_global(p.array<uint32_t>(1) + item, arch::load_shared<uint32_t>(place));
  if (thread == 0) arch::store_global(p.array<uint32_t>(2) + blockIdx.x, arch::cluster_rank());
}

// ------------------------------------------------------------------------------------ the copy engine and warpgroups

struct BoxParams {
  ToyArguments p;
  arch::TensorMap map;
  int corner[4];
  int bytes;
};

// The box of x at a corner, as it lies in shared memory. x 16-bit -> [box, 128 bytes]
// numbers: sizes (4, innermost first), box (4), corner (4)
__global__ void box(const __grid_constant__ BoxParams b) {
  const int thread = arch::thread_index();
  const shared_t barrier = arch::shared_memory(), tile = barrier + 1024;
  if (thread == 0) {
    arch::tma_prefetch_map(&b.map);
    arch::mbarrier_init(barrier, 1);
    arch::fence_mbarrier_init();
  }
  arch::sync_threads();
  if (thread == 0) {
    arch::mbarrier_arrive_expect(barrier, b.bytes);
    arch::tma_load(tile, &b.map, barrier, b.corner[0], b.corner[1], b.corner[2], b.corner[3]);
  }
  arch::mbarrier_wait(barrier, 0);
  for (int i = thread; i < b.bytes / 16; i += static_cast<int>(blockDim.x)) {
    arch::store_global(b.p.array<uint4>(1) + i, arch::load_shared<uint4>(tile + 16 * i));
  }
}

// Each block of a cluster loads one box after the other and all get all, through two stages that each block tells the
// others when it has read. x [blocks * boxes * 8 rows, 64] 16-bit -> [blocks, the same]; numbers: boxes of each block
__global__ void multicast(const __grid_constant__ BoxParams b) {
  const int thread = arch::thread_index(), boxes = b.p.numbers[8];
  const uint32_t blocks = arch::cluster_size(), rank = arch::cluster_rank();
  const shared_t full = arch::shared_memory(), empty = full + 16, tiles = full + 1024;
  if (thread == 0) {
    for (int i = 0; i < 2; ++i) {
      arch::mbarrier_init(full + 8 * i, 1);
      arch::mbarrier_init(empty + 8 * i, blocks);
    }
    arch::fence_mbarrier_init();
  }
  arch::cluster_sync();
  uint4* out = b.p.array<uint4>(1) + rank * blocks * boxes * 64;  // 64 pieces of 16 bytes in a box
  for (int i = 0; i < boxes; ++i) {
    const int stage = i % 2, parity = i / 2 % 2;
    const shared_t stage_tiles = tiles + 1024 * stage * blocks;
    if (thread == 0) {
      arch::mbarrier_wait_cluster(empty + 8 * stage, parity ^ 1);
      arch::mbarrier_arrive_expect(full + 8 * stage, 1024 * blocks);
      const auto all = static_cast<uint16_t>((1u << blocks) - 1);
      const int row = 8 * (i * static_cast<int>(blocks) + static_cast<int>(rank));
      arch::tma_load_multicast(stage_tiles + 1024 * rank, &b.map, full + 8 * stage, 0, row, 0, 0, all);
    }
    arch::mbarrier_wait(full + 8 * stage, parity);
    for (uint32_t j = thread; j < 64 * blocks; j += blockDim.x) {
      arch::store_global(out + i * blocks * 64 + j, arch::load_shared<uint4>(stage_tiles + 16 * j));
    }
    arch::sync_threads();
    if (thread < static_cast<int>(blocks)) arch::mbarrier_arrive_cluster(empty + 8 * stage, thread);
  }
  arch::cluster_sync();
}

// The second block loads by the copy engine what the first has stored, a box of 8 rows. x [8, 64] 16-bit: doubled in
// place as integers -> [8, 64] as it lies in shared memory; flag [1]
__global__ void published_box(const __grid_constant__ BoxParams b) {
  const int thread = arch::thread_index();
  const shared_t barrier = arch::shared_memory(), tile = barrier + 1024;
  uint32_t *x = b.p.array<uint32_t>(0), *flag = b.p.array<uint32_t>(2);
  if (blockIdx.x == 0) {
    for (int i = thread; i < 256; i += 32) arch::store_global(x + i, 2 * arch::load_global<uint32_t>(x + i));
    arch::fence_proxy_async();
    arch::sync_warp();
    if (thread == 0) arch::add_release(flag, 1);
    return;
  }
  if (thread == 0) {
    arch::mbarrier_init(barrier, 1);
    arch::fence_mbarrier_init();
    arch::wait_at_least(flag, 1);
    arch::fence_proxy_async();
    arch::mbarrier_arrive_expect(barrier, 1024);
    arch::tma_load(tile, &b.map, barrier, 0, 0, 0, 0);
  }
  arch::sync_warp();
  arch::mbarrier_wait(barrier, 0);
  for (int i = thread; i < 256; i += 32) {
    arch::store_global(b.p.array<uint32_t>(1) + i, arch::load_shared<uint32_t>(tile + 4 * i));
  }
}

// a [64, 64], b [N, 64] as they lie in shared memory -> d [2, 128, N / 2]: each thread's registers of the products of
// the two halves of K; early: the same as they are when only the first group has been waited for.
// numbers: whether to add to the d that is there
template <class T, int N>
__global__ void warpgroup_product(const ToyArguments p) {
  const int thread = arch::thread_index();
  const shared_t a = arch::shared_memory(), b = a + 64 * 128;
  for (int i = thread; i < 64 * 8; i += 128) {
    arch::store_shared(a + 16 * i, arch::load_global<uint4>(p.array<uint4>(0) + i));
  }
  for (int i = thread; i < N * 8; i += 128) {
    arch::store_shared(b + 16 * i, arch::load_global<uint4>(p.array<uint4>(1) + i));
  }
  arch::fence_proxy_async_shared();
  arch::sync_threads();
  float d[2][N / 2];
  float* out = p.array<float>(2) + thread * (N / 2);
  float* early = p.array<float>(3) + thread * (N / 2);
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < N / 2; ++i) d[j][i] = arch::load_global<float>(out + j * 64 * N + i);
  }
  arch::wgmma_fence();
  for (int j = 0; j < 2; ++j) {
    for (int k = 0; k < 2; ++k) {  // 16 elements of K are 32 bytes
      const uint32_t step = 32 * (2 * j + k);
      arch::wgmma<T, N>(
          d[j], arch::wgmma_descriptor(a + step), arch::wgmma_descriptor(b + step), k > 0 || p.numbers[0] != 0);
    }
    arch::wgmma_commit();
  }
  arch::wgmma_wait<1>();
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < N / 2; ++i) arch::store_global(early + j * 64 * N + i, d[j][i]);
  }
  arch::wgmma_wait<0>();
  for (int j = 0; j < 2; ++j) {
    arch::wgmma_keep(d[j]);
    for (int i = 0; i < N / 2; ++i) arch::store_global(out + j * 64 * N + i, d[j][i]);
  }
}

// The first warpgroup gives registers away, the others take them. -> [threads] uint32: 1
__global__ void registers(const ToyArguments p) {
  if (arch::thread_index() < 128) {
    arch::registers_release<24>();
  } else {
    arch::registers_acquire<240>();
  }
  arch::store_global(p.array<uint32_t>(0) + arch::thread_index(), 1u);
}

// ------------------------------------------------------------------------------------------------------------- litmus

// Every thread has a list of steps of its own. Addresses are offsets, in shared memory and in `memory`.
struct Step {
  int32_t operation, x, y, z;
};

struct LitmusParams {
  const Step* steps;    // [blocks, threads, count]
  uint32_t* results;    // [blocks, threads, count]: what an operation returned
  char* memory;         // global
  arch::TensorMap map;  // of the memory as rows of 64 halves; boxes of 8 rows
  int count;
};

struct LitmusThread {
  const LitmusParams& p;
  float d[2][32];
  bool left;

  template <class V>
  V* memory(int offset) const {
    return reinterpret_cast<V*>(p.memory + offset);
  }
  static shared_t shared(int offset) { return arch::shared_memory() + offset; }
  uint64_t descriptor(int offset) const { return arch::wgmma_descriptor(shared(offset)); }
};

struct Operation {
  const char* name;
  uint32_t (*run)(LitmusThread& t, const Step& s);
};

#define OPERATION(NAME, ...)                              \
  {NAME, [](LitmusThread& t, const Step& s) -> uint32_t { \
     (void)t, (void)s, __VA_ARGS__;                       \
     return 0;                                            \
   }}
#define RESULT_OF(NAME, ...) \
  {NAME, [](LitmusThread& t, const Step& s) -> uint32_t { return (void)t, (void)s, __VA_ARGS__; }}

constexpr Operation kOperations[] = {
    OPERATION("nothing", 0),
    OPERATION("leave", t.left = true),
    OPERATION("sync_threads", arch::sync_threads()),
    OPERATION("sync_warp", arch::sync_warp()),
    OPERATION("sync_warp elsewhere", arch::sync_warp()),
    OPERATION("named_barrier_sync", arch::named_barrier_sync(s.x, s.y)),
    OPERATION("named_barrier_arrive", arch::named_barrier_arrive(s.x, s.y)),
    RESULT_OF("shuffle", arch::shuffle(s.x, s.y)),
    RESULT_OF("shuffle_xor", arch::shuffle_xor(s.x, s.y)),
    RESULT_OF("load_shared", arch::load_shared<uint32_t>(t.shared(s.x))),
    OPERATION("store_shared", arch::store_shared<uint32_t>(t.shared(s.x), s.y)),
    RESULT_OF("load_shared byte", arch::load_shared<uint8_t>(t.shared(s.x))),
    OPERATION("store_shared half", arch::store_shared<uint16_t>(t.shared(s.x), s.y)),
    OPERATION("store_shared 16", arch::store_shared<uint4>(t.shared(s.x), make_uint4(s.y, s.y, s.y, s.y))),
    RESULT_OF("load_global", arch::load_global<uint32_t>(t.memory<char>(s.x))),
    RESULT_OF("load_global 16", arch::load_global<uint4>(t.memory<char>(s.x)).x),
    OPERATION("store_global", arch::store_global<uint32_t>(t.memory<char>(s.x), s.y)),
    RESULT_OF("atomic_add", arch::atomic_add(t.memory<uint32_t>(s.x), uint32_t(s.y))),
    RESULT_OF("load_acquire", arch::load_acquire(t.memory<uint32_t>(s.x))),
    OPERATION("add_release", arch::add_release(t.memory<uint32_t>(s.x), s.y)),
    OPERATION("wait_at_least", arch::wait_at_least(t.memory<uint32_t>(s.x), s.y)),
    OPERATION("fence", arch::fence()),
    OPERATION("copy_async_16", arch::copy_async_16(t.shared(s.x), t.memory<char>(s.y), s.z != 0)),
    OPERATION("copy_commit", arch::copy_commit()),
    OPERATION("copy_wait 0", arch::copy_wait<0>()),
    OPERATION("copy_wait 1", arch::copy_wait<1>()),
    {"load_matrix_x4",
     [](LitmusThread& t, const Step& s) -> uint32_t {
       uint32_t r[4];
       arch::load_matrix_x4(r, t.shared(s.x + 16 * (arch::thread_index() % 32)));
       return r[0];
     }},
    OPERATION("mbarrier_init", arch::mbarrier_init(t.shared(s.x), s.y)),
    OPERATION("fence_mbarrier_init", arch::fence_mbarrier_init()),
    OPERATION("mbarrier_arrive", arch::mbarrier_arrive(t.shared(s.x))),
    OPERATION("mbarrier_arrive_expect", arch::mbarrier_arrive_expect(t.shared(s.x), s.y)),
    OPERATION("mbarrier_arrive_cluster", arch::mbarrier_arrive_cluster(t.shared(s.x), s.y)),
    OPERATION("mbarrier_arrive_relaxed", arch::mbarrier_arrive_relaxed(t.shared(s.x), s.y)),
    OPERATION("mbarrier_wait", arch::mbarrier_wait(t.shared(s.x), s.y)),
    OPERATION("mbarrier_wait_cluster", arch::mbarrier_wait_cluster(t.shared(s.x), s.y)),
    OPERATION("tma_load", arch::tma_load(t.shared(s.x), &t.p.map, t.shared(s.y), 0, s.z, 0, 0)),
    OPERATION("tma_load_multicast", arch::tma_load_multicast(t.shared(s.x), &t.p.map, t.shared(s.y), 0, 0, 0, 0, s.z)),
    OPERATION("fence_proxy_async", arch::fence_proxy_async()),
    OPERATION("fence_proxy_async_shared", arch::fence_proxy_async_shared()),
    OPERATION("wgmma_fence", arch::wgmma_fence()),
    OPERATION("wgmma", arch::wgmma<arch::half, 64>(t.d[s.z], t.descriptor(s.x), t.descriptor(s.y), false)),
    OPERATION("wgmma elsewhere", arch::wgmma<arch::half, 64>(t.d[s.z], t.descriptor(s.x), t.descriptor(s.y), false)),
    OPERATION(
        "wgmma of a changed descriptor",
        arch::wgmma<arch::half, 64>(t.d[0], t.descriptor(0) ^ uint64_t(1) << s.x, t.descriptor(0), false)),
    OPERATION("wgmma_commit", arch::wgmma_commit()),
    OPERATION("wgmma_wait 0", arch::wgmma_wait<0>()),
    RESULT_OF("read accumulator", std::bit_cast<uint32_t>(t.d[s.z][0])),
    OPERATION("write accumulator", t.d[s.z][0] = 1),
    OPERATION("cluster_arrive", arch::cluster_arrive()),
    OPERATION("cluster_wait", arch::cluster_wait()),
    OPERATION("cluster_sync", arch::cluster_sync()),
    OPERATION("store_shared_cluster", arch::store_shared_cluster<uint32_t>(t.shared(s.x), s.y, s.z)),
    OPERATION("registers_release 24", arch::registers_release<24>()),
    OPERATION("registers_release 40", arch::registers_release<40>()),
    OPERATION("registers_acquire 72", arch::registers_acquire<72>()),
};

#undef OPERATION
#undef RESULT_OF

// steps, results, memory: see LitmusParams; numbers: steps of each thread
__global__ void litmus(const __grid_constant__ LitmusParams p) {
  LitmusThread thread = {p, {}, false};
  const auto first = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * p.count;
  for (int i = 0; i < p.count && !thread.left; ++i) {
    const Step& step = p.steps[first + i];
    p.results[first + i] = kOperations[step.operation].run(thread, step);
  }
}

// -------------------------------------------------------------------------------------------------------------
// launches

arch::Launch launch_of(const ToyShape& shape) {
  return {{static_cast<unsigned>(shape.blocks)}, shape.threads, shape.shared_bytes, shape.cluster};
}

template <auto kernel>
void start(const ToyArguments& p, const ToyShape& shape) {
  arch::launch(kernel, p, launch_of(shape), nullptr);
}

template <auto kernel>
void start_with_map(const ToyArguments& p, const ToyShape& shape) {
  const int32_t* n = p.numbers;
  const uint64_t sizes[4] = {uint64_t(n[0]), uint64_t(n[1]), uint64_t(n[2]), uint64_t(n[3])};
  const uint64_t strides[3] = {sizes[0] * 2, sizes[0] * sizes[1] * 2, sizes[0] * sizes[1] * sizes[2] * 2};
  const uint32_t box[4] = {uint32_t(n[4]), uint32_t(n[5]), uint32_t(n[6]), uint32_t(n[7])};
  const auto map = arch::make_tensor_map<arch::half>(p.data[0], sizes, strides, box);
  const int bytes = n[4] * n[5] * n[6] * n[7] * 2;
  arch::launch(kernel, BoxParams{p, map, {n[8], n[9], n[10], n[11]}, bytes}, launch_of(shape), nullptr);
}

void start_litmus(const ToyArguments& p, const ToyShape& shape) {
  const uint64_t sizes[4] = {64, static_cast<uint64_t>(p.bytes[2]) / 128, 1, 1}, strides[3] = {128, 128, 128};
  const auto map = arch::make_tensor_map<arch::half>(p.data[2], sizes, strides, {64, 8, 1, 1});
  const LitmusParams params = {p.array<Step>(0), p.array<uint32_t>(1), p.array<char>(2), map, p.numbers[0]};
  arch::launch(litmus, params, launch_of(shape), nullptr);
}

// Calls a device function on the host.
void start_nothing(const ToyArguments&, const ToyShape&) { arch::sync_threads(); }

}  // namespace fastflow::toys

namespace fastflow::emulator {

const std::vector<Toy>& toys() {
  using namespace fastflow::toys;
  static const std::vector<Toy> all = {
      {"convert", start<convert>},
      {"pack half", start<pack<arch::half>>},
      {"pack bfloat16", start<pack<arch::bfloat16>>},
      {"exchange", start<exchange>},
      {"load_matrix", start<load_matrix>},
      {"product half", start<product<arch::half>>},
      {"product bfloat16", start<product<arch::bfloat16>>},
      {"product float", start<product<float>>},
      {"rotate", start<rotate>},
      {"copies", start<copies>},
      {"pipeline", start<pipeline>},
      {"tickets", start<tickets>},
      {"last_block", start<last_block>},
      {"in_turn", start<in_turn>},
      {"ring", start<ring>},
      {"box", start_with_map<box>},
      {"multicast", start_with_map<multicast>},
      {"published_box", start_with_map<published_box>},
      {"warpgroup_product half 64", start<warpgroup_product<arch::half, 64>>},
      {"warpgroup_product bfloat16 128", start<warpgroup_product<arch::bfloat16, 128>>},
      {"warpgroup_product half 256", start<warpgroup_product<arch::half, 256>>},
      {"registers", start<registers>},
      {"litmus", start_litmus},
      {"outside of a kernel", start_nothing},
  };
  return all;
}

const std::vector<const char*>& litmus_operations() {
  static const std::vector<const char*> names = [] {
    std::vector<const char*> all;
    for (const auto& operation : fastflow::toys::kOperations) all.push_back(operation.name);
    return all;
  }();
  return names;
}

}  // namespace fastflow::emulator
