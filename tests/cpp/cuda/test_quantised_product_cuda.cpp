// Products of quantised matrices with many rows on emulated tensor cores, against their definition in double.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/narrow.cuh"
#include "kernels/cuda/quantised_product.h"
#include "kernels/cuda/widen.cuh"
#include "mixing_reference.h"

using namespace reference;

namespace {

template <class Weight>
void test(int64_t M, int64_t N, int64_t K, const char* order) {
  RandomMatrix<Weight> matrix(N, K);
  std::fill(matrix.of_columns.begin(), matrix.of_columns.end(), 1.0f);  // those are in the activations
  const Floats numbers = normal(M * K);
  std::vector<Float16> x;
  x.reserve(M * K);
  for (const float number : numbers) x.push_back(cuda::narrow<Float16>(number));
  Floats powers(M), y(M * N, NAN);
  for (int64_t m = 0; m < M; ++m) powers[m] = std::ldexp(1.0f, static_cast<int>(m % 5) - 2);
  CHECK(cuda::quantised_product(x.data(), powers.data(), matrix.in_tiles(), M, y.data(), nullptr) == cudaSuccess);
  for (int64_t m = 0; m < M; ++m) {
    Doubles exact(K);
    for (int64_t k = 0; k < K; ++k) exact[k] = cuda::widen(x[m * K + k]) * powers[m];
    const Doubles expected = matrix.times(exact);
    for (int64_t n = 0; n < N; ++n) {
      double most = 0;  // int4 weights are rounded to float16
      for (int64_t k = 0; k < K; ++k) most += std::abs(matrix.at(n, k) * exact[k]);
      const double bound = most * (std::is_same_v<Weight, Int4> ? std::ldexp(1, -11) : std::ldexp(1, -20)) + 1e-30;
      CHECK(std::abs(y[m * N + n] - expected[n]) <= bound, M, N, K, m, n, y[m * N + n], expected[n], bound, order);
    }
  }
}

}  // namespace

int main() {
  emulation::in_every_order([](const char* order) {
    for (const auto& [M, N, K] : {std::array<int64_t, 3>{70, 33, 72}, {17, 80, 136}, {1, 1, 8}, {0, 16, 64}}) {
      test<int8_t>(M, N, K, order);
      test<Int4>(M, N, K, order);
    }
  });
  return failures();
}
