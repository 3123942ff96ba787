// Hard cases for int8 weights, compared with the definitions in double precision of weights and scales. The tolerances
// follow from the quantisation of activations to integers up to 32767 in groups of 256.
#include "kernels/cpu/channel_mixing4_step.h"
#include "kernels/cpu/input_product.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/linear_many.h"
#include "kernels/cpu/residual_input_product.h"
#include "kernels/cpu/time_mixing4_step.h"
#include "mixing_reference.h"
#include "threads.h"

using namespace reference;

namespace {

using Weights = RandomMatrix<int8_t>;

constexpr double kRounding = 0x1p-24;  // of float32
constexpr int64_t kGroup = 256;

// Numbers, and by how much a kernel's may differ from them.
struct Bounded {
  Doubles values, errors;
};

Bounded exact(Doubles values) { return {values, Doubles(values.size())}; }

// What of a row of N numbers, from `first`, and `besides`, is within its bounds.
void check_within(const Bounded& expected, const Floats& got, int64_t first, const char* what, int64_t b) {
  for (size_t i = 0; i < expected.values.size(); ++i) {
    const double difference = std::abs(got[first + i] - expected.values[i]);
    CHECK(difference <= expected.errors[i], what, b, i, got[first + i], expected.values[i], expected.errors[i]);
  }
}

// sum over k of rows[n] q(n, k) columns[k] x[k]. Each activation is off by half a step of its group, and a little for
// the roundings on the way there; sums of groups are exact, and added up in float32.
template <class Element>
Bounded product(int64_t N, const Floats& rows, const Floats& columns, const Element& q, const Bounded& x) {
  const int64_t K = x.values.size();
  Doubles half(K);
  for (int64_t first = 0; first < K; first += kGroup) {
    const int64_t end = std::min(K, first + kGroup);
    double largest = 0;
    for (int64_t k = first; k < end; ++k)
      largest = std::max(largest, (std::abs(x.values[k]) + x.errors[k]) * columns[k]);
    std::fill(half.begin() + first, half.begin() + end, largest * (0.5 / 32767 + 4 * kRounding));
  }
  const double roundings = (static_cast<double>(K) / kGroup + 4) * kRounding;
  Bounded y{Doubles(N), Doubles(N)};
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      const double w = static_cast<double>(rows[n]) * q(n, k), term = w * columns[k] * x.values[k];
      const double error = std::abs(w) * (half[k] + columns[k] * x.errors[k]);
      y.values[n] += term, y.errors[n] += error + roundings * (std::abs(term) + error);
    }
    y.errors[n] += 1e-37;  // below it float32 has fewer bits
  }
  return y;
}

Bounded product(const Weights& w, const Bounded& x) {
  return product(w.N, w.of_rows, w.of_columns, [&](int64_t n, int64_t k) { return w.rows[n * w.K + k]; }, x);
}

// Of a matrix that is given as its transpose.
Bounded transposed_product(const Weights& w, const Bounded& x) {
  return product(w.K, w.of_columns, w.of_rows, [&](int64_t n, int64_t k) { return w.rows[k * w.K + n]; }, x);
}

Floats run_linear(const Weights& w, const Floats& x, int64_t B) {
  Floats y(B * w.N);
  const cpu::Linear linear{B, x.data(), w.in_tiles(), y.data()};
  check_same_bits([&](const cpu::Run& run) {
    std::vector<char> scratch(linear.scratch_bytes(), -1);
    cpu::linear(linear, scratch.data(), run);
    return bytes_of(y);
  });
  return y;
}

// x W^T as a decoding step computes it from rows of W^T.
Floats sum_of_parts(const Matrix& transposed, const Floats& x, int64_t M) {
  Floats sums(M * transposed.N), part(sums.size());
  for (int64_t p = 0; p < cpu::kInputParts; ++p) {
    cpu::input_product(transposed, x.data(), M, p, part.data());
    for (size_t i = 0; i < sums.size(); ++i) sums[i] = p == 0 ? part[i] : sums[i] + part[i];
  }
  return sums;
}

// Channel mixing's last product. The gates are powers of two, so that it does not matter whether products are rounded.
void check_residual_product(const Matrix& transposed, const Floats& a, int64_t B, const Floats& sums) {
  const Floats x = normal(B * transposed.N);
  Floats gates(x.size()), y(x.size());
  for (size_t i = 0; i < gates.size(); ++i) gates[i] = i % 3 ? 0.5f : -2.0f;
  for (const float* gate : {gates.data(), static_cast<float*>(nullptr)}) {
    const cpu::ResidualInputProduct product{transposed, a.data(), B, gate, x.data(), y.data()};
    check_same_bits([&](const cpu::Run& run) {
      std::vector<char> scratch(product.scratch_bytes(), -1);
      cpu::residual_input_product(product, scratch.data(), run);
      return bytes_of(y);
    });
    Floats expected = x;
    for (size_t i = 0; i < x.size(); ++i) expected[i] += (gate ? gate[i] : 1) * sums[i];
    CHECK(bytes_of(y) == bytes_of(expected), transposed.N, transposed.K, B);
  }
}

// Also with W^T row after row, which must give the bits of a decoding step.
Floats run_linear_many(const Weights& w, const Floats& x, int64_t M) {
  Weights transpose(w.K, w.N, [&](int64_t k, int64_t n) { return w.rows[n * w.K + k]; });
  transpose.of_rows = w.of_columns, transpose.of_columns = w.of_rows;
  Floats results[2];
  for (const bool in_tiles : {false, true}) {
    Floats& y = results[in_tiles] = Floats(M * w.N);
    const cpu::LinearMany linear{M, x.data(), in_tiles ? w.in_tiles() : transpose.transposed(), in_tiles, y.data()};
    check_same_bits([&](const cpu::Run& run) {
      std::vector<char> scratch(linear.scratch_bytes(), -1);
      cpu::linear_many(linear, scratch.data(), run);
      return bytes_of(y);
    });
  }
  const Floats sums = sum_of_parts(transpose.transposed(), x, M);
  CHECK(bytes_of(results[0]) == bytes_of(sums), w.N, w.K, M);
  check_residual_product(transpose.transposed(), x, M, sums);
  return results[1];
}

// Both products of B rows x, with a bound; and a row's bits are those it has alone.
void check_products(const Weights& w, const Floats& x, int64_t B) {
  for (const auto& [run, what] : {std::pair{&run_linear, "linear"}, {&run_linear_many, "linear_many"}}) {
    const Floats y = run(w, x, B);
    for (int64_t b = 0; b < B; ++b) check_within(product(w, exact(row(x, b, w.K))), y, b * w.N, what, b);
    const Floats last = run(w, {x.end() - w.K, x.end()}, 1);
    CHECK(bytes_of(last) == bytes_of(Floats(y.end() - w.N, y.end())), what, w.N, w.K, B);
  }
}

void hostile_products(int64_t N, int64_t K, int64_t B) {
  const Weights w(N, K);
  Floats x = normal(B * K);
  check_products(w, x, B);

  Floats outliers = x;
  for (int64_t b = 0; b < B; ++b) outliers[b * K + K / 2] = b % 2 ? 1e4f : -1e30f;
  check_products(w, outliers, B);

  // Where no weight meets it, an outlier is felt by none but its own group of 256.
  if (K > kGroup) {
    Weights deaf(N, K, [&](int64_t n, int64_t k) -> int8_t { return k < kGroup ? w.rows[n * K + k] : 0; });
    for (int64_t b = 0; b < B; ++b) outliers[b * K + K / 2] = x[b * K + K / 2], outliers[b * K + kGroup] = 1e6f;
    check_products(deaf, outliers, B);
  }

  for (const Floats& y : {run_linear(w, Floats(B * K), B), run_linear_many(w, Floats(B * K), B)})
    for (float zero : y) CHECK(zero == 0, N, K, B);

  // A number that is none spoils its own row alone.
  for (const auto run : {&run_linear, &run_linear_many})
    for (const float bad : {NAN, INFINITY}) {
      Floats spoilt = x;
      spoilt[(B - 1) * K + K - 1] = bad;
      const Floats y = run(w, x, B), got = run(w, spoilt, B);
      CHECK(memcmp(y.data(), got.data(), (B - 1) * N * sizeof(float)) == 0, N, K, B);
      for (int64_t n = 0; n < N; ++n) CHECK(!std::isfinite(got[(B - 1) * N + n]), N, K, B, n, bad);
    }

  // Whole numbers as large as they get, which a sum of 256 must hold; all of one sign, or with the sign of the weight.
  for (const bool alternating : {false, true}) {
    Weights most(N, K, [&](int64_t, int64_t k) -> int8_t { return alternating && k % 2 ? -127 : 127; });
    most.of_rows.assign(N, 1), most.of_columns.assign(K, 1);
    Floats largest(B * K, 32767);
    for (int64_t i = 0; i < B * K; ++i)
      if (alternating && i % K % 2) largest[i] = -32767;
    check_products(most, largest, B);
  }
}

template <class Step, class Arguments>
typename Arguments::Outcome run_step(const Arguments& arguments, void (*kernel)(const Step&, void*, const cpu::Run&)) {
  const Slots slots(arguments.B, false);
  typename Arguments::Outcome outcome;
  check_same_bits([&](const cpu::Run& run) {
    outcome = arguments.before(slots);
    const Step step = arguments.step(slots, outcome);
    std::vector<char> scratch(cpu::scratch_bytes(step), -1);
    kernel(step, scratch.data(), run);
    if constexpr (requires { outcome.num; })
      return bytes_of(outcome.shift, outcome.num, outcome.den, outcome.max, outcome.y);
    else
      return bytes_of(outcome.shift, outcome.y);
  });
  return outcome;
}

// LayerNorm and token shift in float32: a few roundings of the largest number on the way.
template <class Arguments>
Bounded mixed_input(const Arguments& a, int64_t b, const Floats& mix) {
  const Doubles x = row(a.x, b, a.C), now = normalised(x, a.weight, a.bias, 1e-5), last = row(a.shift, b, a.C);
  double mean = 0, variance = 0;
  for (double v : x) mean += v / a.C;
  for (double v : x) variance += (v - mean) * (v - mean) / a.C;
  Bounded m = exact(mixed(now, last, mix));
  for (int64_t c = 0; c < a.C; ++c) {
    const double of_mean = std::abs(mean * a.weight[c]) / std::sqrt(variance + 1e-5);
    m.errors[c] = 8 * kRounding *
                  ((std::abs(now[c]) + std::abs(a.bias[c]) + of_mean) * (1 + std::abs(mix[c])) +
                   std::abs(last[c]) * (1 + std::abs(mix[c])));
  }
  return m;
}

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

void check_time_mixing(const TimeMixing<int8_t>& a) {
  const auto got = run_step<TimeMixing4Step>(a, &cpu::time_mixing4_step);
  const Slots slots(a.B, false);
  for (int64_t b = 0; b < a.B; ++b) {
    const Bounded k = product(a.key, mixed_input(a, b, a.mix_k)), v = product(a.value, mixed_input(a, b, a.mix_v)),
                  r = product(a.receptance, mixed_input(a, b, a.mix_r));
    Bounded gated = exact(Doubles(a.A));
    for (int64_t i = 0; i < a.A; ++i) {
      const int64_t at = b * a.A + i;
      const double before = std::exp(double(a.max[at])), num = a.num[at] * before, den = a.den[at] * before;
      const double kept = std::exp(double(a.decay[i])), e = std::exp(k.values[i]), de = e * std::expm1(k.errors[i]);
      const double terms = std::abs(kept * num) + e * std::abs(v.values[i]), scale = std::exp(double(got.max[at]));
      const double few = 32 * kRounding * (1 + std::abs(got.max[at]) + std::abs(a.decay[i]));
      CHECK(std::abs(got.num[at] * scale - (kept * num + e * v.values[i])) <=
                few * terms + de * std::abs(v.values[i]) + (e + de) * v.errors[i],
            a.B, a.C, a.A, b, i);
      CHECK(std::abs(got.den[at] * scale - (kept * den + e)) <= few * (kept * den + e) + de, a.B, a.C, a.A, b, i);
      // A mean of num / den and v; its weights change by a quarter of what k does, at most.
      const double bonus = std::exp(a.first[i] + k.values[i]), p = bonus / (den + bonus), old = num / den;
      const double wkv = (1 - p) * old + p * v.values[i], sizes = std::abs(old) + std::abs(v.values[i]);
      const double of_wkv = std::abs(v.values[i] - old) * k.errors[i] / 4 + v.errors[i] + few * sizes;
      gated.values[i] = wkv * sigmoid_of(r.values[i]);
      gated.errors[i] = of_wkv + (std::abs(wkv) + of_wkv) * (r.errors[i] / 4 + few);
    }
    Bounded y = product(a.output, gated);
    for (int64_t c = 0; c < a.C; ++c) {
      y.values[c] += a.x[b * a.C + c];
      y.errors[c] += kRounding * (std::abs(y.values[c]) + y.errors[c]);
    }
    check_within(y, got.y, b * a.C, "time mixing", b);
  }
}

void check_channel_mixing(const ChannelMixing<int8_t>& a) {
  const auto got = run_step<ChannelMixing4Step>(a, &cpu::channel_mixing4_step);
  for (int64_t b = 0; b < a.B; ++b) {
    const Bounded k = product(a.key, mixed_input(a, b, a.mix_k)), r = product(a.receptance, mixed_input(a, b, a.mix_r));
    Bounded squared = exact(Doubles(a.F));
    for (int64_t f = 0; f < a.F; ++f) {
      const double positive = std::max(0.0, k.values[f]), most = std::max(0.0, k.values[f] + k.errors[f]);
      squared.values[f] = positive * positive;
      squared.errors[f] = most * most - std::pow(std::max(0.0, k.values[f] - k.errors[f]), 2) + kRounding * most * most;
    }
    Bounded y = transposed_product(a.value, squared);
    for (int64_t c = 0; c < a.C; ++c) {
      const double gate = sigmoid_of(r.values[c]), of_gate = r.errors[c] / 4 + 8 * kRounding;
      y.errors[c] = y.errors[c] * (gate + of_gate) + std::abs(y.values[c]) * of_gate;
      y.values[c] = a.x[b * a.C + c] + gate * y.values[c];
      y.errors[c] += 2 * kRounding * (std::abs(y.values[c]) + std::abs(a.x[b * a.C + c]) + y.errors[c]);
    }
    check_within(y, got.y, b * a.C, "channel mixing", b);
  }
}

// C is 3 at least: LayerNorm makes little of two numbers, and nothing of one.
void hostile_steps(int64_t B, int64_t C, int64_t inside) {
  TimeMixing<int8_t> time(B, C, inside);
  ChannelMixing<int8_t> channel(B, C, inside);
  check_time_mixing(time);
  check_channel_mixing(channel);
  const auto y_time = run_step<TimeMixing4Step>(time, &cpu::time_mixing4_step).y,
             y_channel = run_step<ChannelMixing4Step>(channel, &cpu::channel_mixing4_step).y;

  // One channel of the normalised input is huge, in every row.
  TimeMixing<int8_t> loud_time = time;
  ChannelMixing<int8_t> loud_channel = channel;
  loud_time.weight[C / 2] = loud_channel.weight[C / 2] = 100;
  check_time_mixing(loud_time);
  check_channel_mixing(loud_channel);

  // Nothing comes of the matrices.
  TimeMixing<int8_t> silent_time = time;
  ChannelMixing<int8_t> silent_channel = channel;
  silent_time.num.assign(B * inside, 0);
  for (auto* arguments : {&silent_time.weight, &silent_time.bias, &silent_time.shift, &silent_channel.weight,
                          &silent_channel.bias, &silent_channel.shift})
    std::fill(arguments->begin(), arguments->end(), 0.0f);
  CHECK(run_step<TimeMixing4Step>(silent_time, &cpu::time_mixing4_step).y == time.x, B, C, inside);
  CHECK(run_step<ChannelMixing4Step>(silent_channel, &cpu::channel_mixing4_step).y == channel.x, B, C, inside);

  // A number that is none spoils its own row alone, all of it.
  time.shift[B * C - 1] = channel.shift[B * C - 1] = NAN;
  const auto spoilt_time = run_step<TimeMixing4Step>(time, &cpu::time_mixing4_step).y,
             spoilt_channel = run_step<ChannelMixing4Step>(channel, &cpu::channel_mixing4_step).y;
  for (const auto& [before, after] : {std::pair{&y_time, &spoilt_time}, {&y_channel, &spoilt_channel}}) {
    CHECK(memcmp(before->data(), after->data(), (B - 1) * C * sizeof(float)) == 0, B, C, inside);
    for (int64_t c = 0; c < C; ++c) CHECK(std::isnan((*after)[(B - 1) * C + c]), B, C, inside, c);
  }
}

}  // namespace

int main() {
  for (const int64_t B : {1, 3, 16})
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {1, 300}, {15, 63}, {17, 65}, {33, 513}})
      hostile_products(n, k, B);
  hostile_products(3, 8192, 2);
  hostile_products(130, 4400, 6);  // strips, and parts of two groups
  for (const int64_t B : {1, 3, 11, 16})
    for (const auto& [c, inside] : {std::pair<int64_t, int64_t>{3, 1}, {15, 17}, {65, 300}})
      hostile_steps(B, c, inside);
  hostile_steps(1, 520, 3);
  hostile_steps(1, 3, 8192);
  return failures();
}
