// Splits rows of time steps into those of even and of odd blocks of D steps, and joins them again.
#pragma once

#include <utility>

#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FASTFLOW_SHUFFLE 1
#endif
#endif

// Element i of the result is element Index::at(i) of a and b together.
template <class Index, class T, size_t... I>
inline typename Vector<T>::type shuffle(
    typename Vector<T>::type a, typename Vector<T>::type b, std::index_sequence<I...>) {
#ifdef FASTFLOW_SHUFFLE
  return __builtin_shufflevector(a, b, Index::at(I)...);
#else  // GCC before 12
  constexpr int lanes = Vector<T>::lanes;
  return typename Vector<T>::type{(Index::at(I) < lanes ? a[Index::at(I) % lanes] : b[Index::at(I) % lanes])...};
#endif
}

template <int D, int odd>
struct Split {
  static constexpr int at(int i) { return i / D * 2 * D + i % D + odd * D; }
};
template <int D, int lanes, int second>
struct Joined {
  static constexpr int at(int i) {
    const int j = i + second * lanes, block = j / (2 * D), inside = j % (2 * D);
    return block * D + inside % D + (inside < D ? 0 : lanes);
  }
};

// How many steps of each kind one turn of the loops below takes.
template <int D, class T>
constexpr int64_t kSplitBlock = D > Vector<T>::lanes ? D : Vector<T>::lanes;

// even [n], odd [n] <- in [2n]; n is a multiple of kSplitBlock.
template <int D, class T>
void split(const T* in, int64_t n, T* even, T* odd) {
  constexpr int lanes = Vector<T>::lanes;
  constexpr auto all = std::make_index_sequence<lanes>();
  for (int64_t i = 0; i < n; i += kSplitBlock<D, T>) {
    if constexpr (D >= lanes) {
      for (int j = 0; j < D; j += lanes) {
        store(even + i + j, load(in + 2 * i + j));
        store(odd + i + j, load(in + 2 * i + D + j));
      }
    } else {
      const auto a = load(in + 2 * i), b = load(in + 2 * i + lanes);
      store(even + i, shuffle<Split<D, 0>, T>(a, b, all));
      store(odd + i, shuffle<Split<D, 1>, T>(a, b, all));
    }
  }
}

// out [2n] <- even [n], odd [n]
template <int D, class T>
void join(const T* even, const T* odd, int64_t n, T* out) {
  constexpr int lanes = Vector<T>::lanes;
  constexpr auto all = std::make_index_sequence<lanes>();
  for (int64_t i = 0; i < n; i += kSplitBlock<D, T>) {
    if constexpr (D >= lanes) {
      for (int j = 0; j < D; j += lanes) {
        store(out + 2 * i + j, load(even + i + j));
        store(out + 2 * i + D + j, load(odd + i + j));
      }
    } else {
      const auto a = load(even + i), b = load(odd + i);
      store(out + 2 * i, shuffle<Joined<D, lanes, 0>, T>(a, b, all));
      store(out + 2 * i + lanes, shuffle<Joined<D, lanes, 1>, T>(a, b, all));
    }
  }
}

}  // namespace fastflow::FASTFLOW_ISA
