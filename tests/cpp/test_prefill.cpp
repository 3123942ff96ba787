// Products of many rows, LayerNorm with token shift, and the gates, against their definitions in double precision, at
// odd sizes and on any number of threads.
#if defined(__AVX512BF16__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cmath>
#include <vector>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/gates.h"
#include "kernels/cpu/linear_many.h"
#include "kernels/cpu/ln_shift.h"
#include "kernels/cpu/ways.h"
#include "mixing_reference.h"
#include "threads.h"

using namespace reference;

namespace {

// By how much of itself dot products of bfloat16 pairs round an activation, or a weight of another format.
double of_pairs() {
#if defined(__AVX512BF16__) || defined(RWKV_EMULATED_AMX)
  if (cpu::bfloat16_way != cpu::Bfloat16Way::float32) return 1.0 / 256;
#endif
  return 0;
}

template <class Weight>
void test_linear_many(int64_t M, int64_t N, int64_t K) {
  const auto x = normal(M * K);
  const RandomMatrix<Weight> matrix(N, K);
  RandomMatrix<Weight> transpose(K, N, [&](int64_t k, int64_t n) { return matrix.rows[n * K + k]; });
  transpose.of_rows = matrix.of_columns, transpose.of_columns = matrix.of_rows;

  std::vector<float> from_tiles(M * N, NAN), from_rows(M * N, NAN);
  for (const bool in_tiles : {true, false}) {
    const cpu::LinearMany linear{M, x.data(), in_tiles ? matrix.in_tiles() : transpose.transposed(), in_tiles,
                                 in_tiles ? from_tiles.data() : from_rows.data()};
    check_same_bits([&](const cpu::Run& run) {
      std::vector<char> scratch(linear.scratch_bytes(), -1);
      cpu::linear_many(linear, scratch.data(), run);
      return bytes_of(in_tiles ? from_tiles : from_rows);
    });
  }
  if (!std::is_same_v<Weight, int8_t>)  // whose rows are summed in parts, see test_int8
    CHECK(memcmp(from_tiles.data(), from_rows.data(), M * N * sizeof(float)) == 0, M, N, K);
  // Beside int8 activations are off by half a step of their group, whose largest has 32767.
  const double rounding = std::ldexp(1.0, -22) * std::sqrt(K) + (std::is_same_v<Weight, Bfloat16> ? of_pairs() : 0);
  for (int64_t m = 0; m < M; ++m) {
    std::vector<double> step(K);
    for (int64_t k = 0; k < K; ++k) {
      const double size = std::abs(x[m * K + k] * (matrix.of_columns.empty() ? 0 : matrix.of_columns[k]));
      double& of_group = step[k / 256 * 256];
      of_group = std::max(of_group, size / 32767);
    }
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0, error = 0;
      for (int64_t k = 0; k < K; ++k) {
        const double term = matrix.at(n, k) * x[m * K + k];
        sum += term, error += std::abs(term) * rounding;
        if (!matrix.of_rows.empty())
          error += std::abs(value_of(matrix.rows[n * K + k])) * matrix.of_rows[n] * step[k / 256 * 256] / 2 * 1.01;
      }
      for (const auto* y : {&from_tiles, &from_rows})
        CHECK(std::abs((*y)[m * N + n] - sum) <= error, M, N, K, m, n, (*y)[m * N + n], sum, error);
    }
  }
}

// Each layout of int4 has groups of its own. Activations beside tiles are quantised as beside int8.
void test_int4(int64_t M, int64_t N, int64_t K, bool in_tiles) {
  const auto x = normal(M * K);
  const RandomMatrix<Int4> tiles(N, K), rows(K, N, Layout::input_major);
  std::vector<float> y(M * N, NAN);
  const cpu::LinearMany linear{M, x.data(), in_tiles ? tiles.in_tiles() : rows.transposed(), in_tiles, y.data()};
  check_same_bits([&](const cpu::Run& run) {
    std::vector<char> scratch(linear.scratch_bytes(), -1);
    cpu::linear_many(linear, scratch.data(), run);
    return bytes_of(y);
  });
  const Floats& columns = in_tiles ? tiles.of_columns : rows.of_rows;
  const double rounding = std::ldexp(1.0, -22) * std::sqrt(K);
  for (int64_t m = 0; m < M; ++m) {
    const Doubles input = row(x, m, K), steps = in_tiles ? steps_of(input, columns) : Doubles(K);
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0, error = 0;
      for (int64_t k = 0; k < K; ++k) {
        const auto& w = in_tiles ? tiles.rows[n * K + k] : rows.rows[k * N + n];
        const double scaled = value_of(w.scale) * w.q, minimum = value_of(w.minimum), of_column = columns[k];
        sum += (scaled + minimum) * of_column * input[k];
        error += std::abs(scaled + minimum) * of_column * steps[k] / 2 * 1.01;
        error += (std::abs(scaled) + std::abs(minimum)) * std::abs(of_column * input[k]) * rounding;
        if (!in_tiles) error += std::abs((scaled + minimum) * of_column * input[k]) * 2 * of_pairs();
      }
      CHECK(std::abs(y[m * N + n] - sum) <= error, M, N, K, in_tiles, m, n, y[m * N + n], sum, error);
    }
  }
}

void test_ln_shift(int64_t B, int64_t T, int64_t C, int64_t M) {
  const auto x = normal(B * T * C), weight = normal(C), bias = normal(C), mixes = normal(M * C), shift = normal(B * C);
  std::vector<float> mixed(M * B * T * C, NAN), last(B * C, NAN);
  const LnShift op{
      B, T, C, M, x.data(), {weight.data(), bias.data(), 1e-5f}, mixes.data(), shift.data(), mixed.data(), last.data()};
  check_same_bits([&](const cpu::Run& run) {
    cpu::ln_shift(op, run);
    return bytes_of(mixed, last);
  });
  for (int64_t b = 0; b < B; ++b) {
    std::vector<double> before(shift.begin() + b * C, shift.begin() + (b + 1) * C), now(C);
    for (int64_t t = 0; t < T; ++t) {
      const float* row = x.data() + (b * T + t) * C;
      double mean = 0, variance = 0;
      for (int64_t c = 0; c < C; ++c) mean += row[c] / static_cast<double>(C);
      for (int64_t c = 0; c < C; ++c) variance += (row[c] - mean) * (row[c] - mean) / C;
      for (int64_t c = 0; c < C; ++c) now[c] = (row[c] - mean) / std::sqrt(variance + 1e-5) * weight[c] + bias[c];
      for (int64_t m = 0; m < M; ++m)
        for (int64_t c = 0; c < C; ++c) {
          const double expected = before[c] + (now[c] - before[c]) * mixes[m * C + c];
          CHECK(std::abs(mixed[((m * B + b) * T + t) * C + c] - expected) < 1e-5 * (1 + std::abs(expected)), B, T, C,
                t);
        }
      before = now;
    }
    for (int64_t c = 0; c < C; ++c) CHECK(std::abs(last[b * C + c] - now[c]) < 1e-5 * (1 + std::abs(now[c])), b, c);
  }
}

void test_gates(int64_t n) {
  auto k = normal(n);
  k.back() = NAN;
  const auto x = normal(n), r = normal(n), y = normal(n);
  std::vector<float> squared(n), gated(n), added(n);
  check_same_bits([&](const cpu::Run& run) {
    squared = k;
    cpu::squared_relu(squared.data(), n, run);
    cpu::gate_residual(nullptr, r.data(), y.data(), n, gated.data(), run);
    cpu::gate_residual(x.data(), r.data(), y.data(), n, added.data(), run);
    return bytes_of(squared, gated, added);
  });
  for (int64_t i = 0; i < n; ++i) {
    CHECK(i == n - 1 ? std::isnan(squared[i]) : squared[i] == (k[i] > 0 ? k[i] * k[i] : 0), i);
    const double expected = y[i] / (1 + std::exp(-static_cast<double>(r[i])));
    CHECK(std::abs(gated[i] - expected) < 1e-6 * (1 + std::abs(expected)), i);
    CHECK(std::abs(added[i] - (x[i] + expected)) < 1e-6 * (1 + std::abs(x[i]) + std::abs(expected)), i);
  }
}

template <class Weight>
void test_products() {
  for (const int64_t M : {1, 2, 13, 300})
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {16, 32}, {17, 33}, {40, 130}, {33, 1100}})
      test_linear_many<Weight>(M, n, k);
}

// What depends on the way in which bfloat16 is multiplied.
void test_ways() {
  test_products<Bfloat16>();
  for (const bool in_tiles : {true, false}) {
    test_int4(13, 33, 2100, in_tiles);
    for (const int64_t M : {1, 300})
      for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {16, 64}, {17, 65}, {150, 130}})
        test_int4(M, n, k, in_tiles);
  }
}

#ifdef RWKV_AMX
bool has_amx() {
#ifdef RWKV_EMULATED_AMX
  return true;
#else
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned bfloat16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25;
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  return (d & bfloat16) && (d & tile) && (d & int8) && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#endif
}

// The bits of products in vectors.
void test_int8_in_amx() {
  for (const int64_t M : {1, 16, 17, 300})
    for (const auto& [N, K] : {std::pair<int64_t, int64_t>{1, 1}, {16, 64}, {17, 65}, {33, 257}, {70, 1100}})
      for (const bool in_tiles : {true, false}) {
        auto x = normal(M * K);
        if (K > 64) x[(M - 1) * K + 64] = 50, x[K - 1] = NAN;
        const RandomMatrix<int8_t> matrix(in_tiles ? N : K, in_tiles ? K : N);
        std::vector<float> y(M * N);
        const cpu::LinearMany linear{M, x.data(), in_tiles ? matrix.in_tiles() : matrix.transposed(), in_tiles,
                                     y.data()};
        const auto compute = [&](const cpu::Run& run) {
          std::fill(y.begin(), y.end(), -1.0f);
          std::vector<char> scratch(linear.scratch_bytes(), -1);
          cpu::linear_many(linear, scratch.data(), run);
          return bytes_of(y);
        };
        cpu::int8_in_amx = false;
        const std::string expected = compute(on_threads(1));
        cpu::int8_in_amx = true;
        CHECK(compute(on_threads(1)) == expected, M, N, K, in_tiles);
        check_same_bits(compute, M, N, K, in_tiles);
      }
  test_products<int8_t>();
}
#endif

}  // namespace

int main() {
  test_products<float>();
  test_products<Float16>();
  test_products<int8_t>();
#ifdef __AVX512BF16__
  cpu::bfloat16_way = cpu::Bfloat16Way::dot;
  test_ways();
#endif
  cpu::bfloat16_way = cpu::Bfloat16Way::float32;
  test_ways();
#ifdef RWKV_AMX
  if (has_amx()) {
    cpu::bfloat16_way = cpu::Bfloat16Way::amx;
    test_ways();
    test_int8_in_amx();
  } else {
    std::cout << "skipped: AMX, which this processor does not have\n";
  }
#endif
  for (const int64_t T : {1, 2, 7, 33}) {
    test_ln_shift(1, T, 8, 3);
    test_ln_shift(3, T, 33, 2);
  }
  test_gates(1);
  test_gates(100);
  return failures();
}
