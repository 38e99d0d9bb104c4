// The matrix units: ldmatrix, mma, wgmma. Layouts of fragments as in the PTX ISA.
#include <algorithm>
#include <bit>
#include <cstring>

#include "arch/platform.cuh"
#include "model.h"

namespace fastflow::emulator {
namespace {

float number(Element type, uint16_t bits) {
  return type == Element::kHalf ? arch::to_float(arch::half{bits}) : arch::to_float(arch::bfloat16{bits});
}

float tf32(uint32_t bits) { return std::bit_cast<float>(bits & ~0x1fffu); }

struct MatrixCall {
  uint32_t* r;
  uint32_t row;
};

struct MmaCall {
  Element type;
  float* d;
  const uint32_t *a, *b;
};

}  // namespace

void load_matrix_x4(uint32_t (&r)[4], uint32_t row, bool transposed, const Location& at) {
  const Site& site = enter(Kind::kLoadMatrix, at);
  MatrixCall call = {r, row + static_cast<uint32_t>(site.shift[0])};
  if (!last_of_warp(site, &call)) return;
  Warp& warp = *self->warp;
  Block& block = *warp.block;
  uint16_t values[4][8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t address = static_cast<const MatrixCall*>(warp.arguments[lane])->row;
    check_shared(block, address, 16, 16, site);
    const Actor actor = warp.lanes[lane].actor(site);
    block.shadow->read(address, 16, &actor, 1);
    std::memcpy(values[lane / 8][lane % 8], block.bytes(address), 16);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, q = 2 * (lane % 4);
    uint32_t* to = static_cast<const MatrixCall*>(warp.arguments[lane])->r;
    for (int i = 0; i < 4; ++i) {
      const uint16_t lo = transposed ? values[i][q][g] : values[i][g][q];
      const uint16_t hi = transposed ? values[i][q + 1][g] : values[i][g][q + 1];
      to[i] = lo | uint32_t(hi) << 16;
    }
  }
  launch->statistics.shared_read += 512;
  release_warp();
}

void mma(Element type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Location& at) {
  const Site& site = enter(Kind::kMma, at);
  MmaCall call = {type, d, a, b};
  if (!last_of_warp(site, &call)) return;
  const auto& arguments = self->warp->arguments;
  // 32 bytes of K are 8 words: word w of a fragment's rows and columns
  const int per_word = type == Element::kTf32 ? 1 : 2, depth = 8 * per_word;
  float rows[16][16], columns[16][8], sums[16][8];
  const auto widen = [&](uint32_t word, int i) {
    return type == Element::kTf32 ? tf32(word) : number(type, static_cast<uint16_t>(word >> (16 * i)));
  };
  for (int lane = 0; lane < 32; ++lane) {
    const auto& theirs = *static_cast<const MmaCall*>(arguments[lane]);
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < per_word; ++i) {
      rows[g][q * per_word + i] = widen(theirs.a[0], i);
      rows[g + 8][q * per_word + i] = widen(theirs.a[1], i);
      rows[g][(q + 4) * per_word + i] = widen(theirs.a[2], i);
      rows[g + 8][(q + 4) * per_word + i] = widen(theirs.a[3], i);
      columns[q * per_word + i][g] = widen(theirs.b[0], i);
      columns[(q + 4) * per_word + i][g] = widen(theirs.b[1], i);
    }
    for (int i = 0; i < 4; ++i) sums[g + i / 2 * 8][2 * q + i % 2] = theirs.d[i];
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < depth; ++k) {
      const float factor = rows[row][k];
      for (int column = 0; column < 8; ++column) sums[row][column] += factor * columns[k][column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& theirs = *static_cast<const MmaCall*>(arguments[lane]);
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; ++i) theirs.d[i] = sums[g + i / 2 * 8][2 * q + i % 2];
  }
  ++launch->statistics.mma;
  release_warp();
}

// ------------------------------------------------------------------------------------------------------------- wgmma

namespace {

const float kPoison = std::bit_cast<float>(0x7fdeadadu);  // a NaN

Warpgroup& warpgroup_of(Warp& warp, const Site& site) {
  const size_t index = warp.index / 4;
  if (index >= warp.block->warpgroups.size()) fail(site, "the warp belongs to no whole warpgroup");
  return warp.block->warpgroups[index];
}

struct Operand {
  uint32_t address, stride;  // bytes; of eight rows
};

Operand decode(uint64_t descriptor, const char* name, const Site& site) {
  constexpr uint64_t kUsed = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62;
  if (descriptor & ~kUsed) fail(site, "the descriptor of ", name, " has bits outside of its fields: ", hex(descriptor));
  if (descriptor >> 62 != 1) fail(site, "the descriptor of ", name, " must say swizzle mode 1 (128 bytes)");
  if (descriptor >> 49 & 7) fail(site, "the descriptor of ", name, " has a base offset; tiles start at 1024 bytes");
  const Operand operand = {
      static_cast<uint32_t>((descriptor & 0x3fff) << 4), static_cast<uint32_t>((descriptor >> 32 & 0x3fff) << 4)};
  if (operand.stride % 1024 != 0) fail(site, "eight rows of ", name, " must be a multiple of 1024 bytes apart");
  return operand;
}

// Where the two pieces of 16 bytes of a row are: the hardware permutes pieces by address.
uint32_t piece(uint32_t start, uint32_t stride, int row, int i) {
  const uint32_t address = start + row / 8 * stride + row % 8 * 128 + i * 16;
  return address ^ (address >> 3 & 0x70);
}

void compute(Warpgroup& group) {
  const Product& product = group.products.front();
  std::vector<char>& shared = group.block->shared;
  const int n = product.n;
  static float a[64][16], b[16][256];
  const auto load = [&](uint32_t start, uint32_t stride, int row, auto&& to) {
    for (int i = 0; i < 2; ++i) {
      uint16_t bits[8];
      std::memcpy(bits, shared.data() + (piece(start, stride, row, i) - kSharedBase), 16);
      for (int k = 0; k < 8; ++k) to(8 * i + k, number(product.type, bits[k]));
    }
  };
  for (int row = 0; row < 64; ++row) {
    load(product.a, product.a_stride, row, [&](int k, float v) { a[row][k] = v; });
  }
  for (int row = 0; row < n; ++row) {
    load(product.b, product.b_stride, row, [&](int k, float v) { b[k][row] = v; });
  }
  float* sums = product.accumulator->values.data();
  for (int row = 0; row < 64; ++row, sums += n) {
    if (!product.accumulate) std::fill_n(sums, n, 0.0f);
    for (int k = 0; k < 16; ++k) {
      const float factor = a[row][k];
      const float* column = b[k];
      for (int j = 0; j < n; ++j) sums[j] += factor * column[j];
    }
  }
  group.products.pop_front();
  ++group.computed;
}

// f(register, value) for all registers of a warp.
template <class F>
void for_each_register(Accumulator& accumulator, int warp, const F& f) {
  for (int lane = 0; lane < 32; ++lane) {
    float* d = accumulator.registers[32 * warp + lane];
    for (int i = 0; i < accumulator.n / 2; ++i) {
      const int row = 16 * warp + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      f(d[i], accumulator.values[row * accumulator.n + column]);
    }
  }
}

void issue(Warpgroup& group, const Site& site) {
  Block& block = *group.block;
  const Warpgroup::Call& call = group.calls[0];
  for (const Warpgroup::Call& other : group.calls) {
    if (other.a != call.a || other.b != call.b || other.n != call.n || other.accumulate != call.accumulate) {
      fail(site, "the warps of the warpgroup call it with different descriptors");
    }
  }
  const Operand a = decode(call.a, "a", site), b = decode(call.b, "b", site);
  Product product = {
      nullptr,
      call.type,
      call.n,
      a.address + static_cast<uint32_t>(site.shift[0]),
      b.address + static_cast<uint32_t>(site.shift[1]),
      a.stride,
      b.stride,
      call.accumulate};
  ++group.issued;
  // The operands must be known to all threads; those that came through one barrier know the same.
  std::vector<Actor> actors;
  for (int w = 0; w < 4; ++w) {
    for (const Thread& thread : block.warps[group.first_warp + w]->lanes) {
      const auto same = std::count_if(actors.begin(), actors.end(), [&](const Actor& actor) {
        return actor.view == thread.view.get() && actor.at_fence_shared == thread.at_fence_shared.get();
      });
      if (same == 2) continue;  // two, since what one of them wrote itself is known to it alone
      Actor actor = thread.actor(site);
      actor.async = true;
      actor.mark = group.id;
      actor.tick = group.start + group.issued;
      actors.push_back(actor);
    }
  }
  const auto read = [&](uint32_t start, uint32_t stride, int rows) {
    for (int row = 0; row < rows; ++row) {
      for (int i = 0; i < 2; ++i) {
        const uint32_t address = piece(start, stride, row, i);
        check_shared(block, address, 16, 16, site);
        block.shadow->read(address, 16, actors.data(), static_cast<int>(actors.size()));
      }
    }
  };
  read(product.a, product.a_stride, 64);
  read(product.b, product.b_stride, call.n);

  for (auto& accumulator : group.accumulators) {
    int same = 0;
    for (int t = 0; t < 128; ++t) same += accumulator->registers[t] == group.calls[t / 32].registers[t % 32];
    if (same == 128 && accumulator->n == call.n && accumulator->held_by == 15) product.accumulator = accumulator.get();
    if (same != 0 && !product.accumulator) {
      fail(site, "the accumulator is still under way in some warps of the warpgroup, or with another shape");
    }
  }
  if (!product.accumulator) {
    for (int w = 0; w < 4; ++w) {
      if (!block.warps[group.first_warp + w]->fenced_wgmma) {
        fail(site, "no wgmma_fence comes between other uses of the accumulator's registers and this");
      }
    }
    auto accumulator = std::make_unique<Accumulator>();
    accumulator->n = call.n;
    accumulator->held_by = 15;
    accumulator->values.resize(64 * call.n);
    for (int t = 0; t < 128; ++t) accumulator->registers[t] = group.calls[t / 32].registers[t % 32];
    for (int w = 0; w < 4; ++w) {
      for_each_register(*accumulator, w, [](float& d, float& value) {
        value = d;
        d = kPoison;
      });
    }
    product.accumulator = accumulator.get();
    group.accumulators.push_back(std::move(accumulator));
  }
  product.accumulator->last = group.issued;
  group.products.push_back(product);
  ++launch->statistics.wgmma;
  launch->statistics.shared_read += 32 * (64 + call.n);
  if (!launch->late_now()) {
    while (!group.products.empty()) compute(group);
  }
}

}  // namespace

void wgmma(Element type, int n, float* d, uint64_t a, uint64_t b, bool accumulate, const Location& at) {
  const Site& site = enter(Kind::kWgmma, at);
  Warpgroup::Call call = {type, n, a, b, accumulate, {d}};
  if (!last_of_warp(site, &call)) return;
  Warp& warp = *self->warp;
  Warpgroup& group = warpgroup_of(warp, site);
  Warpgroup::Call& mine = group.calls[warp.index % 4];
  mine = call;
  for (int lane = 0; lane < 32; ++lane) {
    const auto& theirs = *static_cast<const Warpgroup::Call*>(warp.arguments[lane]);
    if (theirs.a != a || theirs.b != b || theirs.accumulate != accumulate) {
      fail(site, "lanes call it with different descriptors");
    }
    mine.registers[lane] = theirs.registers[0];
  }
  if (group.arrived && group.site != &site) {
    fail(site, "the warps of the warpgroup have gone different ways: others are in ", group.site->text());
  }
  group.site = &site;
  group.arrived |= 1u << warp.index % 4;
  if (group.arrived != 15) {
    block_warp(Waits::kWarpgroup, site);
    return;
  }
  group.arrived = 0;
  issue(group, site);
  for (int w = 0; w < 4; ++w) launch->wake(*warp.block->warps[group.first_warp + w], kAllLanes);
}

void wgmma_fence(const Location& at) {
  const Site& site = enter(Kind::kWgmmaFence, at);
  if (site.skipped || !last_of_warp(site)) return;
  warpgroup_of(*self->warp, site);
  self->warp->fenced_wgmma = true;
  release_warp();
}

void wgmma_commit(const Location& at) {
  const Site& site = enter(Kind::kWgmmaCommit, at);
  if (site.skipped || !last_of_warp(site)) return;
  self->warp->groups.push_back(warpgroup_of(*self->warp, site).issued);
  release_warp();
}

void wgmma_wait(int groups, const Location& at) {
  const Site& site = enter(Kind::kWgmmaWait, at);
  if (site.skipped || !last_of_warp(site)) return;
  groups += static_cast<int>(site.shift[0]);
  Warp& warp = *self->warp;
  Warpgroup& group = warpgroup_of(warp, site);
  if (static_cast<int>(warp.groups.size()) > groups) {
    const auto done = static_cast<long>(warp.groups.size()) - groups;
    const uint32_t last = warp.groups[done - 1];
    warp.groups.erase(warp.groups.begin(), warp.groups.begin() + done);
    while (static_cast<int32_t>(last - group.computed) > 0) compute(group);
    const unsigned bit = 1u << warp.index % 4;
    for (auto& accumulator : group.accumulators) {
      if (!(accumulator->held_by & bit) || static_cast<int32_t>(accumulator->last - last) > 0) continue;
      for_each_register(*accumulator, warp.index % 4, [&](float& d, float value) {
        if (std::bit_cast<uint32_t>(d) != std::bit_cast<uint32_t>(kPoison)) {
          fail(site, "an accumulator was written while products into it were under way");
        }
        d = value;
      });
      accumulator->held_by &= ~bit;
      warp.fenced_wgmma = false;
    }
    std::erase_if(group.accumulators, [](const auto& accumulator) { return accumulator->held_by == 0; });
    for (Thread& lane : warp.lanes) lane.acquire(views->with(lane.view, group.id + warp.index % 4, group.start + last));
  }
  release_warp();
}

}  // namespace fastflow::emulator
