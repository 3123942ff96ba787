// Matrices into tiles and back, and products with few rows, on emulated devices.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/tiles.h"
#include "mixing_reference.h"

using namespace reference;

namespace {

template <class Weight>
void test_tiles(int64_t N, int64_t K, const char* order) {
  const RandomMatrix<Weight> matrix(N, K);
  std::vector<Weight> tiles(matrix.tiles.size(), random_weight<Weight>(1)), rows(N * K + 1, random_weight<Weight>(1));
  const Weight behind = rows.back();
  CHECK(cuda::tile(matrix.rows.data(), N, K, tiles.data(), nullptr) == cudaSuccess);
  CHECK(memcmp(tiles.data(), matrix.tiles.data(), tiles.size() * sizeof(Weight)) == 0, N, K, order);
  CHECK(cuda::untile(tiles.data(), N, K, rows.data(), nullptr) == cudaSuccess);
  CHECK(memcmp(rows.data(), matrix.rows.data(), N * K * sizeof(Weight)) == 0, N, K, order);
  CHECK(value_of(rows.back()) == value_of(behind), N, K, order);

  // Several at once.
  const RandomMatrix<Weight> other(N, K);
  const cuda::Alike<Weight> both{{tiles.data(), other.tiles.data()}, 2};
  std::vector<Weight> matrices(2 * N * K);
  CHECK(cuda::untile_alike(both, N, K, matrices.data(), nullptr) == cudaSuccess);
  CHECK(memcmp(matrices.data(), matrix.rows.data(), N * K * sizeof(Weight)) == 0, N, K, order);
  CHECK(memcmp(matrices.data() + N * K, other.rows.data(), N * K * sizeof(Weight)) == 0, N, K, order);
}

template <class Weight>
Floats linear(const RandomMatrix<Weight>& matrix, const Floats& x) {
  const int64_t B = x.size() / matrix.K;
  Floats y(B * matrix.N, NAN);
  CHECK(cuda::linear(x.data(), matrix.in_tiles(), B, y.data(), nullptr) == cudaSuccess);
  return y;
}

template <class Weight>
void test_linear(int64_t N, int64_t K, int64_t B, const char* order) {
  const RandomMatrix<Weight> matrix(N, K);
  const Floats x = normal(B * K), y = linear(matrix, x);
  for (int64_t b = 0; b < B; ++b) {
    const Doubles expected = matrix.times(row(x, b, K));
    for (int64_t n = 0; n < N; ++n)
      CHECK(close(y[b * N + n], expected[n]), N, K, B, b, n, y[b * N + n], expected[n], order);
  }
}

// Bit for bit, whatever the others are.
template <class Weight>
void test_rows_are_independent(int64_t N, int64_t K) {
  const RandomMatrix<Weight> matrix(N, K);
  Floats x = normal(16 * K);
  const Floats together = linear(matrix, x);
  CHECK(linear(matrix, x) == together, N, K);
  for (const int64_t count : {1, 2, 3, 7})
    for (int64_t b = 0; b + count <= 16; b += 5) {
      const Floats some = linear(matrix, {x.begin() + b * K, x.begin() + (b + count) * K});
      CHECK(memcmp(some.data(), &together[b * N], some.size() * sizeof(float)) == 0, N, K, count, b);
    }
  x[3 * K] = NAN;
  const Floats with_nan = linear(matrix, x);
  for (int64_t i = 0; i < 16 * N; ++i)
    CHECK(i / N == 3 ? std::isnan(with_nan[i]) : with_nan[i] == together[i], N, K, i, with_nan[i], together[i]);
}

// Zeros are exact, with the scales of zero rows and columns.
void test_an_int8_matrix_of_zeros() {
  RandomMatrix<int8_t> matrix(17, 70, [](int64_t, int64_t) { return int8_t{0}; });
  std::fill(matrix.of_rows.begin(), matrix.of_rows.end(), 1.0f);
  std::fill(matrix.of_columns.begin(), matrix.of_columns.end(), 1.0f);
  CHECK(linear(matrix, normal(3 * 70, 1e6)) == Floats(3 * 17, 0.0f));
}

// Products of integers are exact, so that an error in a single weight is noticed; also with scales that are not normal
// numbers, with the activations as much larger.
void test_int4_integers(int64_t N, int64_t K) {
  for (const bool subnormal : {false, true}) {
    RandomMatrix<Int4> matrix(N, K, [=](int64_t n, int64_t k) {
      const auto q = static_cast<uint8_t>((7 * n + 3 * k + k / 16) % 16);
      const auto step = static_cast<uint16_t>(1 + (n + k / 64) % 5), lowest = static_cast<uint16_t>((n + k / 64) % 9);
      if (subnormal) return Int4Weight{q, {step}, {static_cast<uint16_t>(lowest | 0x8000u)}};
      return Int4Weight{q, float16_of(step), float16_of(-static_cast<float>(lowest))};
    });
    std::fill(matrix.of_columns.begin(), matrix.of_columns.end(), 1.0f);
    Floats x = normal(2 * K, 8);
    for (float& number : x) number = std::ldexp(std::round(number), subnormal ? 24 : 0);
    const Floats y = linear(matrix, x);
    for (int64_t b = 0; b < 2; ++b) {
      const Doubles expected = matrix.times(row(x, b, K));
      for (int64_t n = 0; n < N; ++n)
        CHECK(y[b * N + n] == expected[n], N, K, b, n, y[b * N + n], expected[n], subnormal);
    }
  }
}

template <class Weight>
void test_all(const char* order) {
  constexpr int64_t T = kTileInputs<Weight>;
  using Size = std::pair<int64_t, int64_t>;
  for (const auto& [n, k] : {Size{1, 1}, {16, T}, {33, 8}, {17, T + 1}, {15, T - 1}, {40, 129}}) {
    if constexpr (!std::is_same_v<Weight, Int4>) test_tiles<Weight>(n, k, order);
    for (const int64_t B : {1, 2, 3, 5, 16}) test_linear<Weight>(n, k, B, order);
  }
  if constexpr (!std::is_same_v<Weight, Int4>) test_tiles<Weight>(8, 2056, order);
  test_linear<Weight>(8, 2056, 1, order);
  test_linear<Weight>(2056, 8, 2, order);
  test_linear<Weight>(33, 40, 18, order);  // more than one group
  test_rows_are_independent<Weight>(17, 2056);
}

}  // namespace

int main() {
  CHECK(linear(RandomMatrix<float>(3, 5), {}).empty());
  emulation::in_every_order([](const char* order) {
    test_all<float>(order);
    test_all<Bfloat16>(order);
    test_all<Float16>(order);
    test_all<int8_t>(order);
    test_all<Int4>(order);
    test_an_int8_matrix_of_zeros();
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 3}, {17, 200}, {33, 1100}}) test_int4_integers(n, k);
  });
  return failures();
}
