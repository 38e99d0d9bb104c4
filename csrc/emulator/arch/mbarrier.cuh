// Model of csrc/cuda/arch/mbarrier.cuh.
#pragma once

#include <arch/memory.cuh>

namespace fastflow::arch {

inline void mbarrier_init(shared_t barrier, uint32_t count, Location at = Location::current()) {
  emulator::mbarrier_init(barrier, count, at);
}
inline void fence_mbarrier_init(Location at = Location::current()) { emulator::fence_mbarrier_init(at); }
inline void mbarrier_arrive(shared_t barrier, Location at = Location::current()) {
  emulator::mbarrier_arrive(barrier, at);
}
inline void mbarrier_arrive_expect(shared_t barrier, uint32_t bytes, Location at = Location::current()) {
  emulator::mbarrier_arrive_expect(barrier, bytes, at);
}
inline void mbarrier_arrive_cluster(shared_t barrier, uint32_t rank, Location at = Location::current()) {
  emulator::mbarrier_arrive_cluster(barrier, rank, at);
}
inline void mbarrier_arrive_relaxed(shared_t barrier, uint32_t rank, Location at = Location::current()) {
  emulator::mbarrier_arrive_relaxed(barrier, rank, at);
}
inline void mbarrier_wait_cluster(shared_t barrier, uint32_t parity, Location at = Location::current()) {
  emulator::mbarrier_wait_cluster(barrier, parity, at);
}
inline void mbarrier_wait(shared_t barrier, uint32_t parity, Location at = Location::current()) {
  emulator::mbarrier_wait(barrier, parity, at);
}

}  // namespace fastflow::arch
