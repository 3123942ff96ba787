// Random matrices in every format, and products with them in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "kernels/matrix.h"

namespace reference {

using namespace rwkv;

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

// An int4 weight with the scale and the minimum of its group, which are equal for all weights of a group.
struct Int4Weight {
  uint8_t q;
  Float16 scale, minimum;
};

// What a matrix has as elements.
template <class Weight>
using Element = std::conditional_t<std::is_same_v<Weight, Int4>, Int4Weight, Weight>;

inline float value_of(float w) { return w; }
inline float value_of(Bfloat16 w) {
  const uint32_t bits = static_cast<uint32_t>(w.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline float value_of(Float16 w) {  // finite numbers
  const int exponent = w.bits >> 10 & 0x1f, mantissa = w.bits & 0x3ff;
  const float value = std::ldexp(static_cast<float>(exponent ? 1024 + mantissa : mantissa), std::max(exponent, 1) - 25);
  return w.bits & 0x8000u ? -value : value;
}
inline float value_of(int8_t w) { return w; }
inline double value_of(Int4Weight w) { return static_cast<double>(value_of(w.scale)) * w.q + value_of(w.minimum); }

inline Floats normal(int64_t n, double scale = 1) {
  static std::mt19937 generator(7);
  std::normal_distribution<double> distribution(0, scale);
  Floats out(n);
  for (float& x : out) x = static_cast<float>(distribution(generator));
  return out;
}

// Rounded towards zero; numbers below the normal ones become zero.
inline Float16 float16_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t exponent = (bits >> 23 & 0xff) < 114 ? 0 : (bits >> 23 & 0xff) - 112;
  return {static_cast<uint16_t>(exponent ? (bits >> 16 & 0x8000u) | exponent << 10 | (bits >> 13 & 0x3ffu) : 0)};
}

// int8 weights fill their range whatever the scale: that of their matrix makes them small.
template <class Weight>
Element<Weight> random_weight(double scale) {
  if constexpr (std::is_same_v<Weight, int8_t>) return std::clamp(std::round(normal(1, 48)[0]), -127.0f, 127.0f);
  const float x = normal(1, scale)[0];
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if constexpr (std::is_same_v<Weight, float>) return x;
  if constexpr (std::is_same_v<Weight, Bfloat16>) return {static_cast<uint16_t>(bits >> 16)};
  if constexpr (std::is_same_v<Weight, Float16>) return float16_of(x);
  if constexpr (std::is_same_v<Weight, Int4>) {
    static std::mt19937 generator(11);
    const float step = static_cast<float>(scale * std::exp(normal(1, 0.5)[0]) / 5);
    return {static_cast<uint8_t>(generator() % 16), float16_of(step), float16_of(x / 2 - 7.5f * step)};
  }
}

template <class Weight>
Element<Weight> nan_weight() {
  Element<Weight> nan;
  memset(&nan, 0xff, sizeof nan);
  if constexpr (std::is_same_v<Weight, Int4>) nan.q = 15;
  return nan;
}

template <class Weight>
constexpr Format kFormat = std::is_same_v<Weight, float>      ? Format::fp32
                           : std::is_same_v<Weight, Bfloat16> ? Format::bf16
                           : std::is_same_v<Weight, Float16>  ? Format::fp16
                           : std::is_same_v<Weight, int8_t>   ? Format::int8
                                                              : Format::int4;

// Whether CPU kernels may quantise the activations.
template <class Weight>
constexpr bool kQuantised = kFormat<Weight> == Format::int8 || kFormat<Weight> == Format::int4;

// n positive numbers around `middle`.
inline Floats random_scales(int64_t n, double middle) {
  Floats scales = normal(n, 0.5);
  for (float& scale : scales) scale = static_cast<float>(middle * std::exp(scale));
  return scales;
}

// The quantisation step of each activation in CPU kernels with int8 weights: activations times the scales of their
// columns are quantised to integers up to 32767 in groups of 256.
inline Doubles steps_of(const Doubles& x, const Floats& columns) {
  Doubles steps(x.size());
  for (size_t first = 0; first < x.size(); first += 256) {
    const size_t end = std::min(x.size(), first + 256);
    double largest = 0;
    for (size_t k = first; k < end; ++k) largest = std::max(largest, std::abs(x[k] * columns[k]));
    for (size_t k = first; k < end; ++k) steps[k] = largest / 32767 / columns[k];
  }
  return steps;
}

inline Doubles rounded(Doubles x, const Floats& columns) {
  const Doubles steps = steps_of(x, columns);
  for (size_t k = 0; k < x.size(); ++k)
    if (steps[k] > 0) x[k] = std::nearbyint(x[k] / steps[k]) * steps[k];
  return x;
}

// What a sum may be off by because a few activations, close to the middle between two steps, went the other way.
template <class Element>
double misrounded(const Doubles& steps, const Element& weight) {  // weight(k); no steps where nothing is rounded
  double most = 0;
  for (size_t k = 0; k < steps.size(); ++k) most = std::max(most, std::abs(weight(k)) * steps[k]);
  return 8 * most;
}

// Writes element [n, k] of a matrix with K inputs to int4 tiles.
inline void put_in_tiles(Int4Weight w, int64_t n, int64_t k, int64_t K, uint8_t* tiles) {
  const int64_t i = k % 64;
  uint8_t* const words = tiles + (n / 16 * ((K + 63) / 64) + k / 64) * 9 * 64 + n % 16 * 4;
  memcpy(words, &w.scale, 2), memcpy(words + 2, &w.minimum, 2);
  words[(1 + i / 8) * 64 + i % 4] |= w.q << i / 4 % 2 * 4;
}

// Writes element n of a row of int4 weights of N outputs.
inline void put_in_row(Int4Weight w, int64_t n, int64_t N, uint8_t* row) {
  const int64_t groups = (N + 127) / 128, word = n / 128, i = n % 128;
  memcpy(row + word * 8 + i / 64 * 4, &w.scale, 2), memcpy(row + word * 8 + i / 64 * 4 + 2, &w.minimum, 2);
  row[(8 * groups + 63) / 64 * 64 + word * 64 + i % 16 * 4 + i / 16 / 2] |= w.q << i / 16 % 2 * 4;
}

// Which of the two layouts of a matrix is used: int4 weights have scales for their inputs only, which are the columns
// of W in tiles, and the rows of W^T.
enum class Layout { tiles, input_major };

// A matrix row after row, and in tiles as kernels/tiles.h defines them; int8 and int4 with scales. Groups of int4
// weights are 64 elements of a row in both layouts.
template <class Weight>
struct RandomMatrix {
  static constexpr bool kInt4 = std::is_same_v<Weight, Int4>;
  using Stored = std::conditional_t<kInt4, uint8_t, Weight>;
  int64_t N, K;
  std::vector<Element<Weight>> rows;
  std::vector<Stored> tiles, int4_rows;  // the latter as bytes, for int4 weights only
  Floats of_rows, of_columns;            // scales

  RandomMatrix(int64_t N, int64_t K, Layout layout = Layout::tiles)
      : RandomMatrix(N, K, [K](int64_t, int64_t) { return random_weight<Weight>(size_of_weights(K)); }, layout) {}

  template <class Function>
    requires std::is_invocable_v<Function, int64_t, int64_t>
  RandomMatrix(int64_t N, int64_t K, const Function& element, Layout layout = Layout::tiles) : N(N), K(K), rows(N * K) {
    if (kFormat<Weight> == Format::int8) of_rows = random_scales(N, size_of_weights(K) / 48);
    if (kInt4 && layout == Layout::input_major) of_rows = random_scales(N, 1);
    if (kFormat<Weight> == Format::int8 || (kInt4 && layout == Layout::tiles)) of_columns = random_scales(K, 1);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < K; ++k) rows[n * K + k] = element(n, k);
    store();
  }
  static double size_of_weights(int64_t K) { return std::min(0.1, 1 / std::sqrt(static_cast<double>(K))); }

  double at(int64_t n, int64_t k) const {
    double scale = of_rows.empty() ? 1 : of_rows[n];
    if (!of_columns.empty()) scale *= of_columns[k];
    return value_of(rows[n * K + k]) * scale;
  }
  Doubles times(Doubles x, bool rounds = false) const {
    if (rounds && kQuantised<Weight>) x = rounded(x, of_columns);
    Doubles y(N);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < K; ++k) y[n] += at(n, k) * x[k];
    return y;
  }
  Doubles steps_of(const Doubles& x, bool rounds) const {
    return rounds && !of_columns.empty() ? reference::steps_of(x, of_columns) : Doubles();
  }
  // As kernels take it.
  Matrix in_tiles() const { return {kFormat<Weight>, tiles.data(), N, K, of_rows.data(), of_columns.data()}; }
  // Its transpose, whose inputs lie row after row.
  Matrix transposed() const {
    const void* weights = rows.data();
    if constexpr (kInt4) weights = int4_rows.data();
    return {kFormat<Weight>, weights, K, N, of_columns.data(), of_rows.data()};
  }
  // Overwrites the first inputs of the transpose with bytes that are NaN in float formats.
  void poison(int64_t inputs) {
    if constexpr (kInt4)
      std::fill_n(int4_rows.begin(), inputs * int4_row_bytes(K), uint8_t{0xff});
    else
      std::fill_n(rows.begin(), inputs * K, nan_weight<Weight>());
  }

 private:
  void store() {
    if constexpr (kInt4) {
      tiles.resize(int4_tile_bytes(N, K)), int4_rows.resize(N * int4_row_bytes(K));
      for (int64_t i = 0; i < N * K; ++i) {
        const int64_t n = i / K, k = i % K;
        rows[i].scale = rows[i - k % 64].scale, rows[i].minimum = rows[i - k % 64].minimum;
        put_in_tiles(rows[i], n, k, K, tiles.data());
        put_in_row(rows[i], k, K, int4_rows.data() + n * int4_row_bytes(K));
      }
    } else {
      constexpr int P = kGroupInputs<Weight>, T = kTileInputs<Weight>;
      tiles.resize(tile_blocks(N) * kTileRows * tiles_per_block<Weight>(K) * T);
      for (int64_t n = 0; n < N; ++n)
        for (int64_t k = 0; k < K; ++k) {
          const int64_t tile = n / kTileRows * tiles_per_block<Weight>(K) + k / T, group = k % T / P;
          tiles[((tile * kTileGroups + group) * kTileRows + n % kTileRows) * P + k % P] = rows[n * K + k];
        }
    }
  }
};

}  // namespace reference
