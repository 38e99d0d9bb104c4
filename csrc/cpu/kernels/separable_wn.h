// One layer of SqueezeWave's stack: a depthwise convolution, then two matrix products with the gate between them.
//
// A tile is up to kTileSlices slices of kColumns steps. The depthwise convolution of a slice goes into a window; every
// panel of kRows rows of weights, read where they are, then serves all slices of the tile:
//   window, activations [slices, C, kColumns]
#pragma once

#include "../../params.h"
#include "gate.h"
#include "product.h"

namespace fastflow::FASTFLOW_ISA {

constexpr int64_t kTileSlices = 8;  // windows and activations of 256 channels: 256 KB with AVX2

template <class T>
int64_t separable_wn_vectors(const SeparableWnParams<T>& p) {
  return ceil_div(p.time, Vector<T>::lanes);
}

template <class T>
int64_t separable_wn_scratch_size(const SeparableWnParams<T>& p) {
  return 2 * kTileSlices * p.channels * kColumns<T>;
}

// window [C, kColumns]: what the depthwise convolution makes of the steps from t on.
template <class T>
void convolve_depthwise(const SeparableWnParams<T>& p, const T* h, int64_t t, T* window) {
  constexpr int64_t W = kColumns<T>;
  const bool inside = t > 0 && t + W < p.time;
  T x[W + 2];
  for (int64_t c = 0; c < p.channels; ++c, h += p.time, window += W) {
    const T scale = p.scale[c], shift = p.shift[c], *taps = p.taps + 3 * c;
    if (!inside)
      for (int64_t i = 0; i < W + 2; ++i) x[i] = t + i < 1 || t + i > p.time ? T(0) : scale * h[t + i - 1] + shift;
    for (int64_t i = 0; i < W; i += Vector<T>::lanes) {
      typename Vector<T>::type sum = {};
      for (int64_t j = 0; j < 3; ++j)
        sum += taps[j] * (inside ? scale * load(h + t + i + j - 1) + shift : load(x + i + j));
      store(window + i, sum);
    }
  }
}

// to[i] += from[(t + i) / repeat] + bias, 0 <= i < n; n is N but at the end of time.
template <int64_t N, class T>
void add_repeated(const T* from, T bias, int64_t repeat, int64_t t, int64_t n, T* to) {
  from += t / repeat;
  if (n == N && repeat == 1) {
    for (int64_t i = 0; i < N; ++i) to[i] += from[i] + bias;
  } else if (n == N && repeat == 2) {  // t is even
    for (int64_t i = 0; i < N; ++i) to[i] += from[i / 2] + bias;
  } else {
    for (int64_t i = 0, left = repeat - t % repeat; i < n; ++i, --left) {
      if (left == 0) {
        left = repeat;
        ++from;
      }
      to[i] += *from + bias;
    }
  }
}

// Rows `first` to `first` + kPairs of the gate's output for V vectors of steps from t on.
template <int V, class T>
void gated_product(
    const SeparableWnParams<T>& p, const T* cond, int64_t first, int64_t t, const T* const (&rows)[kRows],
    const T* window, T* activations) {
  constexpr int64_t W = kColumns<T>, N = V * Vector<T>::lanes;
  alignas(64) T out[kRows * W];
  Tile<T, V> sum = {};
  multiply_rows<Plain<T>, V>(rows, window, p.channels, sum);
  store_tile<T, V>(sum, out);
  const int64_t n = min(N, p.time - t), repeat = p.time / p.frames;
  for (int64_t r = 0; r < min(kRows / 2, p.channels - first); ++r) {
    T *tanh_in = out + r * W, *sigmoid_in = tanh_in + kRows / 2 * W;
    const int64_t row = first + r, sigmoid_row = p.channels + row;
    add_repeated<N>(cond + row * p.frames, p.bias[row], repeat, t, n, tanh_in);
    add_repeated<N>(cond + sigmoid_row * p.frames, p.bias[sigmoid_row], repeat, t, n, sigmoid_in);
    gate_row(tanh_in, sigmoid_in, activations + row * W, N);
  }
}

// Rows `first` to `first` + kRows of the residual sum for V vectors of steps from t on.
template <int V, class T>
void residual_product(
    const SeparableWnParams<T>& p, int64_t b, int64_t first, int64_t t, const T* const (&rows)[kRows],
    const T* activations) {
  constexpr int64_t W = kColumns<T>, N = V * Vector<T>::lanes;
  alignas(64) T out[kRows * W];
  Tile<T, V> sum = {};
  multiply_rows<Plain<T>, V>(rows, activations, p.channels, sum);
  store_tile<T, V>(sum, out);
  const int64_t n = min(N, p.time - t);
  for (int64_t r = 0; r < min(kRows, p.channels - first); ++r) {
    const T *h = p.h + b * p.h_batch + (first + r) * p.time + t, *value = out + r * W, bias = p.res_bias[first + r];
    T* h_out = p.h_out + (b * p.channels + first + r) * p.time + t;
    if (n == N) {
      for (int64_t i = 0; i < N; ++i) h_out[i] = h[i] + (value[i] + bias);
    } else {
      for (int64_t i = 0; i < n; ++i) h_out[i] = h[i] + (value[i] + bias);
    }
  }
}

// A tile of `vectors` vectors of time from t on.
template <class T>
void separable_wn_tile(const SeparableWnParams<T>& p, int64_t b, int64_t t, int64_t vectors, T* scratch) {
  constexpr int64_t W = kColumns<T>;
  const int64_t slices = ceil_div(vectors, kVectors), size = p.channels * W;
  T *window = scratch, *activations = scratch + kTileSlices * size;
  const T *h = p.h + b * p.h_batch, *cond = p.cond + b * p.cond_batch;
  for (int64_t s = 0; s < slices; ++s) convolve_depthwise(p, h, t + s * W, window + s * size);

  // Calls f(slice, whether it has all of its vectors).
  const auto for_each_slice = [&](const auto& f) {
    for (int64_t s = 0; s < vectors / kVectors; ++s) f(s, std::true_type());
    if (vectors % kVectors) f(slices - 1, std::false_type());
  };
  const T* rows[kRows];
  for (int64_t first = 0; first < p.channels; first += kRows / 2) {
    for (int r = 0; r < kRows; ++r) {  // those of tanh, then of the sigmoid; beyond the last, any
      const int64_t row = min(first + r % (kRows / 2), p.channels - 1);
      rows[r] = p.weight + (r < kRows / 2 ? row : p.channels + row) * p.channels;
    }
    for_each_slice([&](int64_t s, auto whole) {
      gated_product<whole ? kVectors : 1>(p, cond, first, t + s * W, rows, window + s * size, activations + s * size);
    });
  }
  for (int64_t first = 0; first < p.channels; first += kRows) {
    for (int r = 0; r < kRows; ++r) rows[r] = p.res_weight + min(first + r, p.channels - 1) * p.channels;
    for_each_slice([&](int64_t s, auto whole) {
      residual_product<whole ? kVectors : 1>(p, b, first, t + s * W, rows, activations + s * size);
    });
  }
}

template <class T>
void separable_wn(const SeparableWnParams<T>& p, int64_t begin, int64_t end, T* scratch) {
  const int64_t vectors = separable_wn_vectors(p);
  while (begin < end) {
    const int64_t first = begin % vectors;
    const int64_t count = min(min(end - begin, vectors - first), kTileSlices * kVectors);
    separable_wn_tile(p, begin / vectors, first * Vector<T>::lanes, count, scratch);
    begin += count;
  }
}

}  // namespace fastflow::FASTFLOW_ISA
