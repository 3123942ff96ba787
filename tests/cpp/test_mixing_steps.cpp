// Tiles, products with them and both mixing steps against their definitions in double precision, at odd sizes and with
// work cut into odd pieces.
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/cpu/channel_mixing_step.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/time_mixing_step.h"
#include "kernels/math.h"

using namespace rwkv;

namespace {

using Doubles = std::vector<double>;

// Pieces of three, last one first.
void in_pieces(int64_t n, const cpu::Range& fn) {
  for (int64_t end = n; end > 0; end -= 3) fn(std::max<int64_t>(0, end - 3), end);
}

float value_of(float w) { return w; }
float value_of(Bfloat16 w) {
  const uint32_t bits = static_cast<uint32_t>(w.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
float value_of(Float16 w) {  // normal numbers and zero
  const uint32_t bits = (w.bits & 0x7fffu) == 0 ? 0 : ((w.bits & 0x7fffu) << 13) + (112u << 23);
  float value;
  memcpy(&value, &bits, sizeof value);
  return w.bits & 0x8000u ? -value : value;
}

std::mt19937 generator(7);

std::vector<float> normal(int64_t n, double scale = 1) {
  std::normal_distribution<double> distribution(0, scale);
  std::vector<float> out(n);
  for (float& x : out) x = static_cast<float>(distribution(generator));
  return out;
}

template <class Weight>
Weight random_weight() {
  const float x = normal(1, 0.1)[0];
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
struct Matrix {
  int64_t N, K;
  std::vector<Weight> rows, tiles;

  Matrix(int64_t n, int64_t k)
      : N(n), K(k), tiles(tile_blocks(n) * kTileRows * tiles_per_block<Weight>(k) * kTileInputs<Weight>) {
    for (int64_t i = 0; i < n * k; ++i) rows.push_back(random_weight<Weight>());
    cpu::tile(rows.data(), N, K, tiles.data(), in_pieces);
  }
  Doubles times(const Doubles& x) const {
    Doubles y(N);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < K; ++k) y[n] += value_of(rows[n * K + k]) * x[k];
    return y;
  }
};

Doubles row(const std::vector<float>& from, int64_t b, int64_t width) {
  return {from.begin() + b * width, from.begin() + (b + 1) * width};
}

Doubles normalised(const Doubles& x, const cpu::LayerNorm& norm) {
  double mean = 0, variance = 0;
  for (double v : x) mean += v / x.size();
  for (double v : x) variance += (v - mean) * (v - mean) / x.size();
  Doubles out;
  for (size_t i = 0; i < x.size(); ++i)
    out.push_back((x[i] - mean) / std::sqrt(variance + norm.eps) * norm.weight[i] + norm.bias[i]);
  return out;
}

Doubles mixed(const Doubles& now, const Doubles& last, const std::vector<float>& mix) {
  Doubles out;
  for (size_t i = 0; i < now.size(); ++i) out.push_back(now[i] * mix[i] + last[i] * (1 - mix[i]));
  return out;
}

// Rows of a state: as they come, or backwards with a row of NaN before and after each.
struct Slots {
  std::vector<int64_t> of_row;
  bool apart;

  Slots(int64_t B, bool lie_apart) : apart(lie_apart) {
    for (int64_t b = 0; b < B; ++b) of_row.push_back(apart ? 2 * (B - b) - 1 : b);
  }
  const int64_t* data() const { return apart ? of_row.data() : nullptr; }

  std::vector<float> spread(const std::vector<float>& rows, int64_t width) const {
    const int64_t B = of_row.size();
    std::vector<float> state((apart ? 2 * B + 1 : B) * width, NAN);
    for (int64_t b = 0; b < B; ++b) std::copy_n(rows.begin() + b * width, width, state.begin() + of_row[b] * width);
    return state;
  }
  bool others_are_nan(const std::vector<float>& state, int64_t width) const {
    for (size_t i = 0; apart && i < state.size(); ++i)
      if (i / width % 2 == 0 && !std::isnan(state[i])) return false;
    return true;
  }
};

bool close(double got, double expected) { return std::abs(got - expected) < 5e-5 * (1 + std::abs(expected)); }

template <class Weight>
void test_linear(int64_t N, int64_t K, int64_t B) {
  const Matrix<Weight> matrix(N, K);
  std::vector<Weight> again(N * K);
  cpu::untile(matrix.tiles.data(), N, K, again.data(), in_pieces);
  CHECK(memcmp(again.data(), matrix.rows.data(), N * K * sizeof(Weight)) == 0, N, K);

  const int64_t padded = tiles_per_block<Weight>(K) * kTileInputs<Weight>;
  std::vector<float> x(B * padded), y(B * N);
  for (int64_t b = 0; b < B; ++b) {
    const auto values = normal(K);
    std::copy(values.begin(), values.end(), x.begin() + b * padded);
  }
  cpu::linear(x.data(), matrix.tiles.data(), B, N, K, y.data(), in_pieces);
  for (int64_t b = 0; b < B; ++b) {
    const Doubles expected = matrix.times(Doubles(x.begin() + b * padded, x.begin() + b * padded + K));
    for (int64_t n = 0; n < N; ++n) CHECK(close(y[b * N + n], expected[n]), N, K, b, n, y[b * N + n], expected[n]);
  }
}

template <class Weight>
void test_time_mixing(int64_t B, int64_t C, int64_t A, const Slots& slots) {
  const auto x = normal(B * C), weight = normal(C), bias = normal(C), mix_k = normal(C), mix_v = normal(C),
             mix_r = normal(C), first = normal(A), shift = normal(B * C), num = normal(B * A), max = normal(B * A);
  auto decay = normal(A), den = normal(B * A);
  for (float& w : decay) w = -std::exp(w);
  for (float& d : den) d = std::abs(d) + 0.1f;
  const Matrix<Weight> key(A, C), value(A, C), receptance(A, C), output(C, A);
  auto new_shift = slots.spread(shift, C), new_num = slots.spread(num, A), new_den = slots.spread(den, A),
       new_max = slots.spread(max, A);
  std::vector<float> y(B * C);
  const cpu::LayerNorm norm{weight.data(), bias.data(), 1e-5f};
  const cpu::TimeMixingStep<Weight> step{B,
                                         C,
                                         A,
                                         x.data(),
                                         norm,
                                         mix_k.data(),
                                         mix_v.data(),
                                         mix_r.data(),
                                         decay.data(),
                                         first.data(),
                                         key.tiles.data(),
                                         value.tiles.data(),
                                         receptance.tiles.data(),
                                         output.tiles.data(),
                                         new_shift.data(),
                                         new_num.data(),
                                         new_den.data(),
                                         new_max.data(),
                                         C,
                                         A,
                                         slots.data(),
                                         y.data()};
  std::vector<float> scratch(step.scratch(), NAN);
  cpu::time_mixing_step(step, scratch.data(), in_pieces);
  for (int64_t b = 0; b < B; ++b) {
    const Doubles now = normalised(row(x, b, C), norm), last = row(shift, b, C);
    const Doubles k = key.times(mixed(now, last, mix_k)), v = value.times(mixed(now, last, mix_v)),
                  r = receptance.times(mixed(now, last, mix_r));
    Doubles gated;
    for (int64_t a = 0; a < A; ++a) {
      const int64_t i = b * A + a, j = slots.of_row[b] * A + a;
      const double sum_v = num[i] * std::exp(max[i]), sum_1 = den[i] * std::exp(max[i]);
      const double bonus = std::exp(first[a] + k[a]), kept = std::exp(decay[a]), e = std::exp(k[a]);
      gated.push_back((sum_v + bonus * v[a]) / (sum_1 + bonus) / (1 + std::exp(-r[a])));
      const double scale = std::exp(new_max[j]);
      const double terms = std::abs(kept * sum_v) + std::abs(e * v[a]);  // they may cancel
      CHECK(std::abs(new_num[j] * scale - (kept * sum_v + e * v[a])) < 1e-4 * (1 + terms), b, a);
      CHECK(close(new_den[j] * scale, kept * sum_1 + e), b, a);
    }
    const Doubles out = output.times(gated);
    for (int64_t c = 0; c < C; ++c) {
      CHECK(close(y[b * C + c], x[b * C + c] + out[c]), B, C, A, b, c, y[b * C + c], x[b * C + c] + out[c]);
      CHECK(close(new_shift[slots.of_row[b] * C + c], now[c]), b, c);
    }
  }
  for (const auto* state : {&new_num, &new_den, &new_max}) CHECK(slots.others_are_nan(*state, A), B, A);
  CHECK(slots.others_are_nan(new_shift, C), B, C);
}

template <class Weight>
void test_channel_mixing(int64_t B, int64_t C, int64_t F, const Slots& slots) {
  const auto x = normal(B * C), weight = normal(C), bias = normal(C), mix_k = normal(C), mix_r = normal(C),
             shift = normal(B * C);
  const Matrix<Weight> key(F, C), receptance(C, C), value(F, C);  // value: row after row, input by input
  auto new_shift = slots.spread(shift, C);
  std::vector<float> y(B * C);
  const cpu::LayerNorm norm{weight.data(), bias.data(), 1e-5f};
  const cpu::ChannelMixingStep<Weight> step{B,
                                            C,
                                            F,
                                            x.data(),
                                            norm,
                                            mix_k.data(),
                                            mix_r.data(),
                                            key.tiles.data(),
                                            receptance.tiles.data(),
                                            value.rows.data(),
                                            new_shift.data(),
                                            C,
                                            slots.data(),
                                            y.data()};
  std::vector<float> scratch(step.scratch(), NAN);
  cpu::channel_mixing_step(step, scratch.data(), in_pieces);
  for (int64_t b = 0; b < B; ++b) {
    const Doubles now = normalised(row(x, b, C), norm), last = row(shift, b, C);
    const Doubles k = key.times(mixed(now, last, mix_k)), r = receptance.times(mixed(now, last, mix_r));
    for (int64_t c = 0; c < C; ++c) {
      double sum = 0;
      for (int64_t f = 0; f < F; ++f) sum += k[f] > 0 ? k[f] * k[f] * value_of(value.rows[f * C + c]) : 0;
      const double expected = x[b * C + c] + sum / (1 + std::exp(-r[c]));
      CHECK(close(y[b * C + c], expected), B, C, F, b, c, y[b * C + c], expected);
      CHECK(close(new_shift[slots.of_row[b] * C + c], now[c]), b, c);
    }
  }
  CHECK(slots.others_are_nan(new_shift, C), B, C);
}

template <class Weight>
void test_all() {
  for (const int64_t B : {1, 2, 5, 16})
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {16, 32}, {17, 33}, {40, 130}, {130, 31}}) {
      test_linear<Weight>(n, k, B);
      for (const bool apart : {false, true}) {
        test_time_mixing<Weight>(B, n, k, {B, apart});
        test_channel_mixing<Weight>(B, n, k, {B, apart});
      }
    }
}

}  // namespace

int main() {
  for (float x = -80; x < 100; x += 0.37f)
    CHECK(std::abs(sigmoid(x) * (1 + std::exp(-static_cast<double>(x))) - 1) < 1e-6, x);
  CHECK(sigmoid(-1000.0f) == 0 && sigmoid(1000.0f) == 1 && std::isnan(sigmoid(NAN)));
  test_all<float>();
  test_all<Bfloat16>();
  test_all<Float16>();
  return failures();
}
