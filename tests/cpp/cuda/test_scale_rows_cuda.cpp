// Rows as float16 against the definition: below 1 by a power of two, and rounded once.
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "emulation.h"
#include "kernels/cuda/scale_rows.h"

using namespace rwkv;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

uint16_t bits_of_half(float x) {
  const __half_raw half = __float2half_rn(x);
  return half.x;
}

void test(const char* order, int64_t M, int64_t K, bool with_columns, float odd) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(M * K), columns(K), powers(M, kNan);
  for (float& column : columns) column = 0.5f + std::abs(normal(random));
  for (int64_t i = 0; i < M * K; ++i) x[i] = std::ldexp(normal(random), static_cast<int>(i / K * 37 % 200 - 100));
  if (odd != 0 && M > 0) x[K / 2] = odd;
  std::vector<uint16_t> halves(M * K, 0xffff);
  CHECK(cuda::scale_rows(x.data(), with_columns ? columns.data() : nullptr, M, K, halves.data(), powers.data(),
                         nullptr) == cudaSuccess,
        order, M, K);
  for (int64_t m = 0; m < M; ++m) {
    float largest = 0;
    const auto at = [&](int64_t k) { return with_columns ? x[m * K + k] * columns[k] : x[m * K + k]; };
    for (int64_t k = 0; k < K; ++k) largest = std::fmax(largest, std::abs(at(k)));
    int e = 0;
    if (std::isfinite(largest)) std::frexp(largest, &e);
    e = std::clamp(e, -126, 126);
    CHECK(powers[m] == std::ldexp(1.0f, e), order, M, K, m, powers[m], e);
    for (int64_t k = 0; k < K; ++k) {
      const uint16_t expected = bits_of_half(at(k) * std::ldexp(1.0f, -e));
      CHECK(halves[m * K + k] == expected, order, M, K, m, k, halves[m * K + k], expected);
    }
  }
}

}  // namespace

int main() {
  emulation::in_every_order([](const char* order) {
    for (const bool with_columns : {false, true})
      for (const float odd : {0.0f, kInf, 3e38f, 1e-44f}) {
        test(order, 3, 1, with_columns, odd);
        test(order, 2, 300, with_columns, odd);
        test(order, 5, 1000, with_columns, odd);
      }
    test(order, 1, 300, false, kNan);
    test(order, 0, 5, false, 0);
  });
  return failures();
}
