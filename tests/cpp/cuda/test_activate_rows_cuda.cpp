// What prefill does between products in 16 bits, on emulated devices: rounded once, from definitions in double.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/activate_rows.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/narrow.cuh"
#include "mixing_reference.h"

using namespace reference;

namespace {

// The spacing of the numbers of a format around one below 1.
template <class Number>
double spacing(double x) {
  constexpr bool is_half = std::is_same_v<Number, Float16>;
  int e = 0;
  std::frexp(x, &e);
  return std::ldexp(1.0, std::max(e, is_half ? -13 : -125) - (is_half ? 11 : 8));
}

template <class Number>
void test_activated(int64_t M, int64_t K, bool is_gated, const char* order) {
  Floats x = normal(M * K), gate = normal(M * K, 4), powers(M, NAN);
  for (int64_t i = 0; i < M * K; ++i) x[i] = std::ldexp(x[i], static_cast<int>(i / K * 7 % 20));
  if (M > 1) std::fill_n(x.begin() + K, K, 0.0f);
  std::vector<Number> rows(M * K + 1, cuda::narrow<Number>(7));
  CHECK(cuda::activate_rows(x.data(), is_gated ? gate.data() : nullptr, M, K, rows.data(), powers.data(), nullptr) ==
        cudaSuccess);
  for (int64_t m = 0; m < M; ++m) {
    Doubles exact;
    double largest = 0;
    for (int64_t i = m * K; i < (m + 1) * K; ++i) {
      const double number = x[i], positive = std::max(number, 0.0);
      exact.push_back(is_gated ? number / (1 + std::exp(-static_cast<double>(gate[i]))) : positive * positive);
      largest = std::max(largest, std::abs(exact.back()));
    }
    int e = 0;
    CHECK(std::frexp(powers[m], &e) == 0.5, m, powers[m], order);  // a power of two
    CHECK(largest == 0 ? powers[m] == 1 : largest < 1.000001 * powers[m] && largest > 0.499999 * powers[m], M, K, m,
          powers[m], largest, order);
    for (int64_t k = 0; k < K; ++k) {
      const double expected = exact[k] / powers[m], got = value_of(rows[m * K + k]);
      CHECK(std::abs(got - expected) <= 0.5001 * spacing<Number>(expected) + 1e-6 * std::abs(expected), M, K, m, k, got,
            expected, order);
    }
  }
  CHECK(value_of(rows[M * K]) == 7, M, K, order);
}

void test_residual(int64_t M, int64_t K, bool is_gated, const char* order) {
  const Floats x = normal(M * K), gate = normal(M * K, 4), y = normal(M * K);
  Floats powers(M), out(M * K + 1, -1);
  for (int64_t m = 0; m < M; ++m) powers[m] = std::ldexp(1.0f, static_cast<int>(m % 5) - 2);
  CHECK(cuda::residual_rows(x.data(), is_gated ? gate.data() : nullptr, y.data(), powers.data(), M, K, out.data(),
                            nullptr) == cudaSuccess);
  for (int64_t i = 0; i < M * K; ++i) {
    const double share = is_gated ? 1 / (1 + std::exp(-static_cast<double>(gate[i]))) : 1;
    const double expected = x[i] + share * y[i] * powers[i / K];
    CHECK(close(out[i], expected), M, K, i, out[i], expected, order);
  }
  CHECK(out[M * K] == -1, M, K, order);
}

template <class Number>
void test_all(const char* order) {
  for (const bool is_gated : {false, true})
    for (const auto& [M, K] : {std::pair<int64_t, int64_t>{1, 1}, {3, 40}, {2, 700}, {0, 5}})
      test_activated<Number>(M, K, is_gated, order);
}

// Ties go to even numbers, and NaN stays NaN.
void test_narrow() {
  const auto bits = [](float x) { return cuda::narrow<Bfloat16>(x).bits; };
  CHECK(bits(1.0f) == 0x3f80 && bits(-2.0f) == 0xc000 && bits(INFINITY) == 0x7f80, bits(1.0f));
  CHECK(bits(1.00390625f) == 0x3f80 && bits(1.01171875f) == 0x3f82 && bits(1.00390637f) == 0x3f81, bits(1.00390625f));
  CHECK(bits(3.4e38f) == 0x7f80 && std::isnan(value_of(cuda::narrow<Bfloat16>(NAN))), bits(3.4e38f));
  uint32_t low = 0x7f800001;  // a NaN whose upper half is that of infinity
  float nan;
  memcpy(&nan, &low, sizeof nan);
  CHECK(std::isnan(value_of(cuda::narrow<Bfloat16>(nan))));
}

}  // namespace

int main() {
  test_narrow();
  emulation::in_every_order([](const char* order) {
    test_all<Bfloat16>(order), test_all<Float16>(order);
    for (const bool is_gated : {false, true})
      for (const auto& [M, K] : {std::pair<int64_t, int64_t>{1, 1}, {3, 40}, {6, 700}, {0, 5}})
        test_residual(M, K, is_gated, order);
  });
  return failures();
}
