// Both mixing steps as they are defined, in double precision; what CPU and CUDA kernels are tested against.
#pragma once

#include "check.h"
#include "kernels/mixing4_steps.h"
#include "random_matrix.h"

namespace reference {

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

// Arguments of time_mixing4_step for B sequences. The types are those of the matrices' weights.
template <class Key, class Value = Key, class Receptance = Key, class Output = Key>
struct TimeMixing {
  int64_t B, C, A;
  Floats x = normal(B * C), weight = normal(C), bias = normal(C), mix_k = normal(C), mix_v = normal(C),
         mix_r = normal(C), decay = normal(A), first = normal(A), shift = normal(B * C), num = normal(B * A),
         den = normal(B * A), max = normal(B * A);
  RandomMatrix<Key> key{A, C};
  RandomMatrix<Value> value{A, C};
  RandomMatrix<Receptance> receptance{A, C};
  RandomMatrix<Output> output{C, A};
  bool rounds = false;  // activations beside integer weights

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

// Arguments of channel_mixing4_step for B sequences. The types are those of the matrices' weights.
template <class Key, class Receptance = Key, class Value = Key>
struct ChannelMixing {
  int64_t B, C, F;
  Floats x = normal(B * C), weight = normal(C), bias = normal(C), mix_k = normal(C), mix_r = normal(C),
         shift = normal(B * C);
  RandomMatrix<Key> key{F, C};
  RandomMatrix<Receptance> receptance{C, C};
  RandomMatrix<Value> value{F, C, Layout::input_major};  // transposed
  bool rounds = false;                                   // activations beside integer weights

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
      if (rounds && kQuantised<Value>)
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
