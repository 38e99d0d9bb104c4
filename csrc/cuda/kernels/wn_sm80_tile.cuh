// What the WN kernels for sm_80 and later share: tiles in shared memory, the ring of copies, and products of warps.
//
// Operands lie with the depth of the product innermost, in rows of 64 bytes: 32 numbers of 16 bits, or 16 of float32.
// Two rows fill the 32 banks. The four chunks of 16 bytes of row r are stored in the order c ^ (r / 2 % 4): so the
// eight rows that ldmatrix reads at a time, and the two rows that eight threads copy at a time, are in different banks.
#pragma once

#include <arch/barrier.cuh>
#include <arch/copy.cuh>
#include <arch/memory.cuh>
#include <arch/mma.cuh>
#include <arch/platform.cuh>

#include "../../params.h"
#include "wn_schedule.cuh"

namespace fastflow::sm80 {

constexpr int kThreads = 256;
constexpr int kRowBytes = 64;
constexpr int kSweep = kThreads / 4;  // rows that all threads copy at once, 16 bytes each

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Depth of one step, and of one chunk, in elements.
template <class T>
constexpr int kDepth = kRowBytes / static_cast<int>(sizeof(T));
template <class T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(T));

// Where chunk `chunk` of row `row` starts, in bytes.
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (row / 2 % 4)) * 16);
}

// N numbers beside each other in memory, moved in accesses of up to 16 bytes, whose alignment they have.
template <class T, int N>
struct Vector {
  static constexpr int kBytes = N * static_cast<int>(sizeof(T));
  static constexpr int kAccess = kBytes < 16 ? kBytes : 16;
  static constexpr int kWords = kAccess / 4;
  struct alignas(kAccess) Words {
    uint32_t w[kWords];
  };
  Words part[kBytes / kAccess];

  static __device__ __forceinline__ Vector load(const T* from) {
    Vector v;
#pragma unroll
    for (int i = 0; i < kBytes / kAccess; ++i) {
      v.part[i] = arch::load_global<Words>(from + i * (kAccess / static_cast<int>(sizeof(T))));
    }
    return v;
  }
  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (int i = 0; i < kBytes / kAccess; ++i) {
      arch::store_global<Words>(to + i * (kAccess / static_cast<int>(sizeof(T))), part[i]);
    }
  }

  __device__ __forceinline__ uint32_t& word(int i) { return part[i / kWords].w[i % kWords]; }
  __device__ __forceinline__ uint32_t word(int i) const { return part[i / kWords].w[i % kWords]; }

  __device__ __forceinline__ void unpack(float (&v)[N]) const {
#pragma unroll
    for (int i = 0; i < kBytes / 4; ++i) {
      if constexpr (sizeof(T) == 2) {
        arch::unpack2<T>(word(i), v[2 * i], v[2 * i + 1]);
      } else {
        v[i] = arch::bits_to<float>(word(i));
      }
    }
  }
  static __device__ __forceinline__ Vector pack(const float (&v)[N]) {
    Vector packed;
#pragma unroll
    for (int i = 0; i < kBytes / 4; ++i) {
      if constexpr (sizeof(T) == 2) {
        packed.word(i) = arch::pack2<T>(v[2 * i], v[2 * i + 1]);
      } else {
        packed.word(i) = arch::bits_to<uint32_t>(v[i]);
      }
    }
    return packed;
  }
};

// Weights as a product takes them in: [rows, depth], swizzled as above; or [depth, rows], as they are in memory when
// the product is with the transposed matrix. Then a row of a stage is ROWS numbers long, a multiple of 128 bytes.
enum class Weights { kByRow, kByDepth };

// Where chunk `chunk` of row `depth` of weights by depth starts. Ldmatrix reads eight rows at a time, one chunk of
// each. Float32, which it cannot transpose, is read number by number: four rows at a time, two chunks of each.
template <class T, int ROWS>
__device__ __forceinline__ uint32_t swizzled_by_depth(int depth, int chunk) {
  const int turn = sizeof(T) == 2 ? depth % 8 : depth % 4 * 2;
  return depth * ROWS * static_cast<int>(sizeof(T)) + ((chunk ^ turn) * 16);
}

// The part of a product of BLOCK_T steps by ROWS rows that one of the block's 8 warps makes: WARPS_T warps lie along
// the steps, the others along the rows. Layout of the accumulators as <arch/mma.cuh> says.
template <class T, int BLOCK_T, int ROWS, int WARPS_T, Weights WEIGHTS = Weights::kByRow>
struct WarpTile {
  static constexpr int kSteps = BLOCK_T / WARPS_T, kRows = ROWS / (8 / WARPS_T);
  static constexpr int kM = kSteps / 16, kN = kRows / 8;
  static_assert(kSteps % 16 == 0 && kRows % 16 == 0);

  float acc[kM][kN][4];

  // Where a thread's accumulators lie in the block's tile.
  struct Place {
    int step0, row0, quad;  // its first step, the warp's first row, lane % 4

    __device__ __forceinline__ Place() {
      const int thread = arch::thread_index();
      step0 = thread / 32 % WARPS_T * kSteps + thread % 32 / 4;
      row0 = thread / 32 / WARPS_T * kRows;
      quad = thread % 4;
    }
    // The step that acc[i][...][2 * e] and [2 * e + 1] belong to.
    __device__ __forceinline__ int step(int i, int e) const { return step0 + i * 16 + e * 8; }
    // With the rows of a gate (see gate_channel): the first of the two neighbouring channels whose tanh inputs are in
    // acc[...][2 * j], and their sigmoids' in acc[...][2 * j + 1].
    __device__ __forceinline__ int channel(int j) const { return row0 / 2 + j * 8 + quad * 2; }
  };

  // What this warp multiplies of x [BLOCK_T, 64 bytes] and of the weights: 32 bytes of the depth.
  struct Fragments {
    uint32_t a[kM][4], b[kN][2];

    __device__ __forceinline__ void load(arch::shared_t x, arch::shared_t w, int half) {
      const int warp = static_cast<int>(threadIdx.x) / 32;
      const int step0 = warp % WARPS_T * kSteps, row0 = warp / WARPS_T * kRows;
#pragma unroll
      for (int j = 0; j < kN; j += 2) load_b(b[j], b[j + 1], w, row0 + j * 8, half);
#pragma unroll
      for (int i = 0; i < kM; ++i) load_a(a[i], x, step0 + i * 16, half);
    }

   private:
    static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
    static __device__ __forceinline__ uint32_t rounded(uint32_t v) {
      if constexpr (sizeof(T) == 4) return arch::round_tf32(v);
      return v;
    }

    // Of 16 steps; matrices come in the order of a[]: steps 0 to 7, 8 to 15 of the first 16 bytes, then of the second.
    static __device__ __forceinline__ void load_a(uint32_t (&a)[4], arch::shared_t tile, int step, int half) {
      arch::load_matrix_x4(a, (tile + step * kRowBytes + swizzled(lane() % 16, lane() / 16)) ^ (half * 32));
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = rounded(a[i]);
    }

    // Of 8 rows and of the next 8.
    static __device__ __forceinline__ void load_b(
        uint32_t (&b0)[2], uint32_t (&b1)[2], arch::shared_t tile, int row, int half) {
      uint32_t r[4];
      const int matrix = lane() / 8;
      if constexpr (WEIGHTS == Weights::kByRow) {
        const uint32_t at = swizzled(matrix / 2 * 8 + lane() % 8, matrix % 2);
        arch::load_matrix_x4(r, (tile + row * kRowBytes + at) ^ (half * 32));
      } else if constexpr (sizeof(T) == 2) {
        const int depth = half * 16 + matrix % 2 * 8 + lane() % 8;
        arch::load_matrix_x4_trans(r, tile + swizzled_by_depth<T, ROWS>(depth, row / 8 + matrix / 2));
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int depth = half * 8 + i % 2 * 4 + lane() % 4, column = row + i / 2 * 8 + lane() / 4;
          const uint32_t at = swizzled_by_depth<T, ROWS>(depth, column / 4) + column % 4 * 4;
          r[i] = arch::load_shared<uint32_t>(tile + at);
        }
      }
      b0[0] = rounded(r[0]);
      b0[1] = rounded(r[1]);
      b1[0] = rounded(r[2]);
      b1[1] = rounded(r[3]);
    }
  };

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] = 0;
      }
    }
  }

  __device__ __forceinline__ void multiply(const Fragments& f) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) arch::mma<T>(acc[i][j], f.a[i], f.b[j]);
    }
  }
};

// The stages through which a block's operands pass: all but one are on their way while one is multiplied. There are
// enough for 32 KiB on their way: the L2 cache brings a multiprocessor about 50 bytes a cycle, 600 cycles after it
// asks.
template <int STAGE_BYTES>
struct Ring {
  static constexpr int kStages = 1 + ceil_div(32 << 10, STAGE_BYTES);
  static constexpr int kBytes = kStages * STAGE_BYTES;

  arch::shared_t base;
  int reading = 0;  // the stage that next() returns

  __device__ __forceinline__ explicit Ring(arch::shared_t base) : base(base) {}

  // copy(stage) starts the calling thread's copies of one more step, if there is one. One group is closed in any case:
  // they are counted.
  template <class Copy>
  __device__ __forceinline__ void fill(const Copy& copy) const {
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) {
      copy(base + stage * STAGE_BYTES);
      arch::copy_commit();
    }
  }

  // Waits for the next stage, and sends for one more step into the stage that was left last.
  template <class Copy>
  __device__ __forceinline__ arch::shared_t next(const Copy& copy) {
    arch::copy_wait<kStages - 2>();
    arch::sync_threads();  // all threads' copies of the stage are there, and all have left the one before
    copy(base + (reading == 0 ? kStages - 1 : reading - 1) * STAGE_BYTES);
    arch::copy_commit();
    const arch::shared_t stage = base + reading * STAGE_BYTES;
    reading = reading + 1 == kStages ? 0 : reading + 1;
    return stage;
  }

  // tile += the next `steps` steps. x(s, stage) is where the activations of step s are, the weights are W_BYTES into
  // the stage. Fragments are loaded half a step ahead, so that the matrix units have work while the block meets.
  template <int W_BYTES, class Tile, class X, class Copy>
  __device__ __forceinline__ void multiply(Tile& tile, int steps, const X& x, const Copy& copy) {
    typename Tile::Fragments even, odd;
    arch::shared_t stage = next(copy);
    even.load(x(0, stage), stage + W_BYTES, 0);
    for (int s = 0; s < steps; ++s) {
      odd.load(x(s, stage), stage + W_BYTES, 1);
      tile.multiply(even);
      if (s + 1 < steps) {
        stage = next(copy);
        even.load(x(s + 1, stage), stage + W_BYTES, 0);
      }
      tile.multiply(odd);
    }
  }
};

// One thread's place in the copies. A step brings BLOCK_T rows of activations (or none) and ROWS rows of weights; a
// segment is a run of steps along one depth: a tap's channels, the conditioning's, or the gate's.
template <class T, int BLOCK_T, int ROWS>
struct Segment {
  static constexpr int kXBytes = BLOCK_T * kRowBytes, kStageBytes = kXBytes + ROWS * kRowBytes;

  const T* x;         // this thread's chunk in the first sweep; read only where it is inside
  const T* x_base;    // some address that may be read
  int64_t x_sweep;    // elements from one sweep to the next
  int32_t source;     // the time step of x
  const T* w;         // as x
  const T* w_base;    //
  int64_t w_sweep;    // elements from one sweep to the next
  int32_t w_rows;     // rows from one sweep to the next
  int32_t w_left;     // rows from the first sweep's on; may be negative
  int32_t remaining;  // depth that is still to be copied

  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / 4; }
  static __device__ __forceinline__ int column() { return static_cast<int>(threadIdx.x) % 4 * kChunk<T>; }
  static __device__ __forceinline__ uint32_t place() { return swizzled(row(), static_cast<int>(threadIdx.x) % 4); }

  // Row i of the tile is at base + first + i * step, and of the time step t + i * stride.
  __device__ __forceinline__ void set_x(const T* base, int64_t first, int64_t step, int32_t t, int32_t stride) {
    x_base = base;
    x_sweep = kSweep * step;
    source = t + row() * stride;
    x = base + first + row() * step + column();
  }
  // Row `first` (this thread's) of base [rows, stride], and every sweep the row `sweep` further on.
  __device__ __forceinline__ void set_w(const T* base, int64_t stride, int32_t first, int32_t rows, int32_t sweep) {
    w_base = base;
    w = base + first * stride + column();
    w_sweep = sweep * stride;
    w_rows = sweep;
    w_left = rows - first;
  }

  __device__ __forceinline__ void copy_x(arch::shared_t stage, int32_t stride, int32_t time) const {
    const bool inside = column() < remaining;
#pragma unroll
    for (int i = 0; i < ceil_div(BLOCK_T, kSweep); ++i) {
      if (BLOCK_T < kSweep && row() >= BLOCK_T) break;
      const int32_t t = source + i * kSweep * stride;
      const bool valid = inside && t >= 0 && t < time;
      arch::copy_async_16(stage + place() + i * kSweep * kRowBytes, valid ? x + i * x_sweep : x_base, valid);
    }
  }
  __device__ __forceinline__ void copy_w(arch::shared_t stage) const {
    const bool inside = column() < remaining;
#pragma unroll
    for (int i = 0; i < ROWS / kSweep; ++i) {
      const bool valid = inside && i * w_rows < w_left;
      arch::copy_async_16(stage + kXBytes + place() + i * kSweep * kRowBytes, valid ? w + i * w_sweep : w_base, valid);
    }
  }
  __device__ __forceinline__ void advance() {
    x += kDepth<T>;
    w += kDepth<T>;
    remaining -= kDepth<T>;
  }
};

// What the first product reads, for one tile of steps: u = sum over segments of x * w, and some vectors.
template <class T>
struct GateInputs {
  const WnParams<T>& p;
  const WnItem item;
  const WnLayerArrays<T>& layer;
  const T* h;         // [T, C], this batch entry's
  const T* cond;      // [T, Cc or 2G], this batch entry's, or null
  const float* add;   // [2G]
  const float* taps;  // [k, 2G] or null
  int64_t h_step;

  __device__ __forceinline__ GateInputs(const WnParams<T>& p, const WnItem& item)
      : p(p), item(item), layer(p.layer[item.layer]), add(p.gate_add_of(item.layer, item.batch, item.phase)) {
    const int32_t index = item.layer, batch = item.batch;
    const bool first = index == 0;
    h = first ? p.h + batch * p.h_batch : p.states[(index - 1) % 2] + int64_t(batch) * p.time * p.channels;
    h_step = first ? p.h_step : p.channels;
    cond = layer.cond ? layer.cond + batch * p.cond_batch : nullptr;
    taps = p.tap_add
               ? p.tap_add + (index * int64_t(p.tap_batch) + batch % p.tap_batch) * p.kernel_size * 2 * p.gate_channels
               : nullptr;
  }
  // The step that row `row` of the tile is.
  __device__ __forceinline__ int32_t time_of(int row) const { return item.t0 + row * p.phases; }

  __device__ __forceinline__ bool has_cond() const { return p.cond == WnCond::kLocal; }
  __device__ __forceinline__ int segments() const { return p.kernel_size + (has_cond() ? 1 : 0); }
  __device__ __forceinline__ int steps() const {
    return p.kernel_size * ceil_div(p.channels, kDepth<T>) + (has_cond() ? ceil_div(p.cond_channels, kDepth<T>) : 0);
  }

  // Begins segment `index` for the gate's channels from g0 on. Of the rows in shared memory 8 are of tanh, the next 8
  // of the sigmoid for the same channels, and so on: a thread gets both inputs of a gate. A sweep takes 32 channels.
  template <class S>
  __device__ __forceinline__ void enter(S& segment, int index, int g0) const {
    const int g = g0 + S::row() / 16 * 8 + S::row() % 8, half = S::row() / 8 % 2;
    const bool is_tap = index < p.kernel_size;
    const int64_t stride = is_tap ? int64_t(p.kernel_size) * p.channels : p.cond_channels;
    const T* weight = layer.conv_weight + index * p.channels;
    if (is_tap) {
      const int32_t t = item.t0 + index * layer.dilation - layer.left_padding;
      segment.set_x(h, t * h_step, p.phases * h_step, t, p.phases);
    } else {
      weight = layer.cond_weight + item.phase * int64_t(2) * p.gate_channels * stride;
      segment.set_x(cond, item.frame0 * p.cond_step, p.cond_step, item.t0, p.phases);
    }
    segment.set_w(weight + half * p.gate_channels * stride, stride, g, p.gate_channels, kSweep / 2);
    segment.remaining = is_tap ? p.channels : p.cond_channels;
  }

  // Adds what is not a product.
  template <class Tile>
  __device__ __forceinline__ void add_vectors(Tile& tile, int g0) const {
    const typename Tile::Place place;
#pragma unroll
    for (int j = 0; j < Tile::kN / 2; ++j) {
      const int g = g0 + place.channel(j);
      if (g >= p.gate_channels) continue;
      const auto add_where = [&](const float* vector, const auto& inside) {
        float u[2], v[2];
        Vector<float, 2>::load(vector + g).unpack(u);
        Vector<float, 2>::load(vector + g + p.gate_channels).unpack(v);
#pragma unroll
        for (int i = 0; i < Tile::kM; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (!inside(time_of(place.step(i, e / 2)))) continue;
            tile.acc[i][2 * j][e] += u[e % 2];
            tile.acc[i][2 * j + 1][e] += v[e % 2];
          }
        }
      };
      add_where(add, [](int) { return true; });
      for (int tap = 0; taps && tap < p.kernel_size; ++tap) {
        const int shift = tap * layer.dilation - layer.left_padding;
        add_where(
            taps + int64_t(tap) * 2 * p.gate_channels, [&](int t) { return t + shift >= 0 && t + shift < p.time; });
      }
      if (p.cond == WnCond::kProjected) {
#pragma unroll
        for (int i = 0; i < Tile::kM; ++i) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int t = time_of(place.step(i, e));
            if (t >= p.time) continue;
            float u[2], v[2];
            Vector<T, 2>::load(cond + t * p.cond_step + g).unpack(u);
            Vector<T, 2>::load(cond + t * p.cond_step + g + p.gate_channels).unpack(v);
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              tile.acc[i][2 * j][2 * e + c] += u[c];
              tile.acc[i][2 * j + 1][2 * e + c] += v[c];
            }
          }
        }
      }
    }
  }
};

}  // namespace fastflow::sm80
