// Model of csrc/cuda/arch/memory.cuh: every access is checked.
#pragma once

#include <arch/platform.cuh>

namespace fastflow::arch {

using ::uint4;
using emulator::Location;
using shared_t = uint32_t;

template <class V>
using access_t = std::conditional_t<
    sizeof(V) == 16, uint4,
    std::conditional_t<
        sizeof(V) == 8, uint64_t,
        std::conditional_t<sizeof(V) == 4, uint32_t, std::conditional_t<sizeof(V) == 2, uint16_t, uint8_t>>>>;

template <class To, class From>
To bits_to(const From& from) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<To>);
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

inline shared_t shared_memory() { return emulator::kSharedBase; }

template <class V>
V load_shared(shared_t address, Location at = Location::current()) {
  static_assert(sizeof(V) == sizeof(access_t<V>) && std::is_trivially_copyable_v<V>);
  V v;
  std::memcpy(&v, emulator::load_shared(address, sizeof(V), at), sizeof(V));
  return v;
}

template <class V>
void store_shared(shared_t address, V v, Location at = Location::current()) {
  static_assert(sizeof(V) == sizeof(access_t<V>) && std::is_trivially_copyable_v<V>);
  std::memcpy(emulator::store_shared(address, sizeof(V), at), &v, sizeof(V));
}

template <class V>
V load_global(const void* address, Location at = Location::current()) {
  static_assert(sizeof(V) == sizeof(access_t<V>) && std::is_trivially_copyable_v<V>);
  V v;
  std::memcpy(&v, emulator::load_global(address, sizeof(V), at), sizeof(V));
  return v;
}

template <class V>
void store_global(void* address, V v, Location at = Location::current()) {
  static_assert(sizeof(V) == sizeof(access_t<V>) && std::is_trivially_copyable_v<V>);
  void* to = emulator::store_global(address, sizeof(V), at);
  std::memcpy(to, &v, sizeof(V));
  emulator::stored_global(to);
}

template <class V>
V atomic_add_any(V* address, V v, const Location& at) {
  void* to = emulator::atomic_begin(address, sizeof(V), at);
  V before;
  std::memcpy(&before, to, sizeof(V));
  const V after = before + v;
  std::memcpy(to, &after, sizeof(V));
  emulator::atomic_end(to);
  return before;
}
inline float atomic_add(float* address, float v, Location at = Location::current()) {
  return atomic_add_any(address, v, at);
}
inline double atomic_add(double* address, double v, Location at = Location::current()) {
  return atomic_add_any(address, v, at);
}
inline uint32_t atomic_add(uint32_t* address, uint32_t v, Location at = Location::current()) {
  return atomic_add_any(address, v, at);
}

inline uint32_t load_acquire(const uint32_t* flag, Location at = Location::current()) {
  return emulator::load_acquire(flag, at);
}
inline void add_release(uint32_t* flag, uint32_t v, Location at = Location::current()) {
  emulator::add_release(flag, v, at);
}
inline void wait_at_least(const uint32_t* flag, uint32_t value, Location at = Location::current()) {
  emulator::wait_at_least(flag, value, at);
}
inline void fence(Location at = Location::current()) { emulator::fence(at); }

}  // namespace fastflow::arch
