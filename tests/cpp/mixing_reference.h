// Random matrices and both mixing steps as they are defined, in double precision; what CPU and CUDA kernels are tested
// against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/mixing4_steps.h"

namespace reference {

using namespace rwkv;

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

inline float value_of(float w) { return w; }
inline float value_of(Bfloat16 w) {
  const uint32_t bits = static_cast<uint32_t>(w.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline float value_of(Float16 w) {  // normal numbers and zero
  const uint32_t bits = (w.bits & 0x7fffu) == 0 ? 0 : ((w.bits & 0x7fffu) << 13) + (112u << 23);
  float value;
  memcpy(&value, &bits, sizeof value);
  return w.bits & 0x8000u ? -value : value;
}
inline float value_of(int8_t w) { return w; }

inline Floats normal(int64_t n, double scale = 1) {
  static std::mt19937 generator(7);
  std::normal_distribution<double> distribution(0, scale);
  Floats out(n);
  for (float& x : out) x = static_cast<float>(distribution(generator));
  return out;
}

// int8 weights fill their range whatever the scale: that of their matrix makes them small.
template <class Weight>
Weight random_weight(double scale) {
  if constexpr (std::is_same_v<Weight, int8_t>) return std::clamp(std::round(normal(1, 48)[0]), -127.0f, 127.0f);
  const float x = normal(1, scale)[0];
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if constexpr (std::is_same_v<Weight, float>) return x;
  if constexpr (std::is_same_v<Weight, Bfloat16>) return {static_cast<uint16_t>(bits >> 16)};
  if constexpr (std::is_same_v<Weight, Float16>) {
    const uint32_t exponent = (bits >> 23 & 0xff) < 114 ? 0 : (bits >> 23 & 0xff) - 112;
    return {static_cast<uint16_t>(exponent ? (bits >> 16 & 0x8000u) | exponent << 10 | (bits >> 13 & 0x3ffu) : 0)};
  }
}

template <class Weight>
Weight nan_weight() {
  Weight nan;
  memset(&nan, 0xff, sizeof nan);
  return nan;
}

template <class Weight>
constexpr Format kFormat = std::is_same_v<Weight, float>      ? Format::fp32
                           : std::is_same_v<Weight, Bfloat16> ? Format::bf16
                           : std::is_same_v<Weight, Float16>  ? Format::fp16
                                                              : Format::int8;

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

// A matrix row after row, and in tiles as kernels/tiles.h defines them; int8 with scales.
template <class Weight>
struct RandomMatrix {
  int64_t N, K;
  std::vector<Weight> rows, tiles;
  Floats of_rows, of_columns;  // scales

  RandomMatrix(int64_t N, int64_t K)
      : RandomMatrix(N, K, [K](int64_t, int64_t) { return random_weight<Weight>(size_of_weights(K)); }) {}

  template <class Element>
  RandomMatrix(int64_t N, int64_t K, const Element& element)
      : N(N), K(K), rows(N * K), tiles(tile_blocks(N) * kTileRows * tiles_per_block<Weight>(K) * kTileInputs<Weight>) {
    if (kFormat<Weight> == Format::int8)
      of_rows = random_scales(N, size_of_weights(K) / 48), of_columns = random_scales(K, 1);
    constexpr int P = kGroupInputs<Weight>, T = kTileInputs<Weight>;
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < K; ++k) {
        const int64_t tile = n / kTileRows * tiles_per_block<Weight>(K) + k / T, group = k % T / P;
        tiles[((tile * kTileGroups + group) * kTileRows + n % kTileRows) * P + k % P] = rows[n * K + k] = element(n, k);
      }
  }
  static double size_of_weights(int64_t K) { return std::min(0.1, 1 / std::sqrt(static_cast<double>(K))); }

  double at(int64_t n, int64_t k) const {
    const double scale = of_rows.empty() ? 1 : static_cast<double>(of_rows[n]) * of_columns[k];
    return value_of(rows[n * K + k]) * scale;
  }
  Doubles times(Doubles x, bool rounds = false) const {
    if (rounds && kFormat<Weight> == Format::int8) x = rounded(x, of_columns);
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
  Matrix transposed() const { return {kFormat<Weight>, rows.data(), K, N, of_columns.data(), of_rows.data()}; }
};

inline Doubles row(const Floats& from, int64_t b, int64_t width) {
  return {from.begin() + b * width, from.begin() + (b + 1) * width};
}

inline Doubles normalised(const Doubles& x, const Floats& weight, const Floats& bias, double eps) {
  double mean = 0, variance = 0;
  for (double v : x) mean += v / x.size();
  for (double v : x) variance += (v - mean) * (v - mean) / x.size();
  Doubles out;
  for (size_t i = 0; i < x.size(); ++i) out.push_back((x[i] - mean) / std::sqrt(variance + eps) * weight[i] + bias[i]);
  return out;
}

inline Doubles mixed(const Doubles& now, const Doubles& last, const Floats& mix) {
  Doubles out;
  for (size_t i = 0; i < now.size(); ++i) out.push_back(now[i] * mix[i] + last[i] * (1 - mix[i]));
  return out;
}

inline bool close(double got, double expected, double besides = 0) {
  return std::abs(got - expected) < 5e-5 * (1 + std::abs(expected)) + besides;
}

// Where the rows of a state lie: as they come; or backwards in every second slot of a pool, one layer of three; or so
// with the last rows, from `real` on, in one slot together, as those are that only fill up a batch. The rest is NaN.
struct Slots {
  static constexpr int kLayers = 3;
  std::vector<int64_t> of_row;
  int64_t real;
  bool apart;

  Slots(int64_t B, bool lie_apart) : Slots(B, lie_apart, B) {}
  Slots(int64_t B, bool lie_apart, int64_t real) : real(real), apart(lie_apart) {
    for (int64_t b = 0; b < B; ++b) of_row.push_back(!apart ? b : b < real ? 2 * (B - b) - 1 : 0);
  }
  const int64_t* data() const { return apart ? of_row.data() : nullptr; }
  int64_t stride(int64_t width) const { return apart ? kLayers * width : width; }
  int64_t first(int64_t b, int64_t width) const { return of_row[b] * stride(width) + offset(width); }
  int64_t offset(int64_t width) const { return apart ? width : 0; }  // of the layer

  Floats spread(const Floats& rows, int64_t width) const {
    const int64_t B = of_row.size();
    Floats state((apart ? 2 * B + 1 : B) * stride(width), NAN);
    for (int64_t b = B - 1; b >= 0; --b) std::copy_n(rows.begin() + b * width, width, state.begin() + first(b, width));
    return state;
  }
  // Checks that nothing was written but the rows.
  void check_others(Floats state, int64_t width) const {
    for (size_t b = 0; b < of_row.size(); ++b) std::fill_n(state.begin() + first(b, width), width, NAN);
    for (float x : state) CHECK(std::isnan(x), width);
  }
};

// Arguments of time_mixing4_step for B sequences.
template <class Weight>
struct TimeMixing {
  int64_t B, C, A;
  Floats x = normal(B * C), weight = normal(C), bias = normal(C), mix_k = normal(C), mix_v = normal(C),
         mix_r = normal(C), decay = normal(A), first = normal(A), shift = normal(B * C), num = normal(B * A),
         den = normal(B * A), max = normal(B * A);
  RandomMatrix<Weight> key{A, C}, value{A, C}, receptance{A, C}, output{C, A};
  bool rounds = false;  // activations beside int8 weights

  // State in its slots, and what a step returns; replaced by the step.
  struct Outcome {
    Floats shift, num, den, max, y;
  };

  TimeMixing(int64_t B, int64_t C, int64_t A) : B(B), C(C), A(A) {
    for (float& w : decay) w = -std::exp(w);
    for (float& d : den) d = std::abs(d) + 0.1f;
  }

  Outcome before(const Slots& slots) const {
    return {slots.spread(shift, C), slots.spread(num, A), slots.spread(den, A), slots.spread(max, A), Floats(B * C)};
  }

  TimeMixing4Step step(const Slots& slots, Outcome& to) const {
    const int64_t c = slots.offset(C), a = slots.offset(A);
    return {B,
            C,
            A,
            x.data(),
            {weight.data(), bias.data(), 1e-5f},
            mix_k.data(),
            mix_v.data(),
            mix_r.data(),
            decay.data(),
            first.data(),
            key.in_tiles(),
            value.in_tiles(),
            receptance.in_tiles(),
            output.in_tiles(),
            to.shift.data() + c,
            to.num.data() + a,
            to.den.data() + a,
            to.max.data() + a,
            slots.stride(C),
            slots.stride(A),
            slots.data(),
            to.y.data()};
  }

  void compare(const Slots& slots, const Outcome& got) const {
    for (int64_t b = 0; b < slots.real; ++b) {
      const Doubles now = normalised(row(x, b, C), weight, bias, 1e-5), last = row(shift, b, C);
      const Doubles k = key.times(mixed(now, last, mix_k), rounds), v = value.times(mixed(now, last, mix_v), rounds),
                    r = receptance.times(mixed(now, last, mix_r), rounds);
      const Doubles steps_k = key.steps_of(mixed(now, last, mix_k), rounds),
                    steps_v = value.steps_of(mixed(now, last, mix_v), rounds);
      Doubles gated;
      for (int64_t a = 0; a < A; ++a) {
        const int64_t i = b * A + a, j = slots.first(b, A) + a;
        const double sum_v = num[i] * std::exp(max[i]), sum_1 = den[i] * std::exp(max[i]);
        const double bonus = std::exp(first[a] + k[a]), kept = std::exp(decay[a]), e = std::exp(k[a]);
        gated.push_back((sum_v + bonus * v[a]) / (sum_1 + bonus) / (1 + std::exp(-r[a])));
        const double scale = std::exp(got.max[j]);
        const double terms = std::abs(kept * sum_v) + std::abs(e * v[a]);  // they may cancel
        const double dk = e * misrounded(steps_k, [&](int64_t c) { return key.at(a, c); }),
                     dv = e * misrounded(steps_v, [&](int64_t c) { return value.at(a, c); });
        CHECK(std::abs(got.num[j] * scale - (kept * sum_v + e * v[a])) < 1e-4 * (1 + terms) + dk * std::abs(v[a]) + dv,
              B, C, A, b, a);
        CHECK(close(got.den[j] * scale, kept * sum_1 + e, dk), B, C, A, b, a);
      }
      const Doubles out = output.times(gated, rounds);
      const Doubles steps = output.steps_of(gated, rounds);
      for (int64_t c = 0; c < C; ++c) {
        const double besides = misrounded(steps, [&](int64_t a) { return output.at(c, a); });
        CHECK(close(got.y[b * C + c], x[b * C + c] + out[c], besides), B, C, A, b, c, got.y[b * C + c],
              x[b * C + c] + out[c]);
        CHECK(close(got.shift[slots.first(b, C) + c], now[c]), B, C, A, b, c);
      }
    }
    for (const auto* state : {&got.num, &got.den, &got.max}) slots.check_others(*state, A);
    slots.check_others(got.shift, C);
  }
};

// Arguments of channel_mixing4_step for B sequences.
template <class Weight>
struct ChannelMixing {
  int64_t B, C, F;
  Floats x = normal(B * C), weight = normal(C), bias = normal(C), mix_k = normal(C), mix_r = normal(C),
         shift = normal(B * C);
  RandomMatrix<Weight> key{F, C}, receptance{C, C}, value{F, C};  // value: transposed
  bool rounds = false;                                            // activations beside int8 weights

  struct Outcome {
    Floats shift, y;
  };

  ChannelMixing(int64_t B, int64_t C, int64_t F) : B(B), C(C), F(F) {}

  Outcome before(const Slots& slots) const { return {slots.spread(shift, C), Floats(B * C)}; }

  ChannelMixing4Step step(const Slots& slots, Outcome& to) const {
    return {B,
            C,
            F,
            x.data(),
            {weight.data(), bias.data(), 1e-5f},
            mix_k.data(),
            mix_r.data(),
            key.in_tiles(),
            receptance.in_tiles(),
            value.transposed(),
            to.shift.data() + slots.offset(C),
            slots.stride(C),
            slots.data(),
            to.y.data()};
  }

  void compare(const Slots& slots, const Outcome& got) const {
    for (int64_t b = 0; b < slots.real; ++b) {
      const Doubles now = normalised(row(x, b, C), weight, bias, 1e-5), last = row(shift, b, C);
      const Doubles k = key.times(mixed(now, last, mix_k), rounds),
                    r = receptance.times(mixed(now, last, mix_r), rounds);
      Doubles squared;
      for (int64_t f = 0; f < F; ++f) squared.push_back(k[f] > 0 ? k[f] * k[f] : 0);
      Doubles steps;
      if (rounds && kFormat<Weight> == Format::int8)
        steps = steps_of(squared, value.of_rows), squared = rounded(squared, value.of_rows);
      for (int64_t c = 0; c < C; ++c) {
        double sum = 0;
        for (int64_t f = 0; f < F; ++f) sum += squared[f] * value.at(f, c);
        const double expected = x[b * C + c] + sum / (1 + std::exp(-r[c]));
        const double besides = misrounded(steps, [&](int64_t f) { return value.at(f, c); });
        CHECK(close(got.y[b * C + c], expected, besides), B, C, F, b, c, got.y[b * C + c], expected);
        CHECK(close(got.shift[slots.first(b, C) + c], now[c]), B, C, F, b, c);
      }
    }
    slots.check_others(got.shift, C);
  }
};

}  // namespace reference
