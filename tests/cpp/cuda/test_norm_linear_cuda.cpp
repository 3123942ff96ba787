// Products with normalised rows on emulated devices, against their definition, and with the same bits in every batch.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/norm_linear.h"
#include "mixing_reference.h"

using namespace reference;

namespace {

template <class Weight>
struct Case {
  int64_t N, K;
  RandomMatrix<Weight> matrix{N, K};
  Floats weight = normal(K), bias = normal(K);

  Floats run(const Floats& x) const {
    const int64_t B = x.size() / K;
    Floats normalised(B > cuda::kNormalisedByBlocks ? B * K : 0, NAN), y(B * N, NAN);
    const LayerNorm norm{weight.data(), bias.data(), 1e-5f};
    CHECK(cuda::norm_linear(x.data(), norm, matrix.in_tiles(), B, normalised.data(), y.data(), nullptr) == cudaSuccess);
    return y;
  }

  // All rows at once, and parts of them, which other kernels compute.
  void test(const char* order) const {
    Floats x = normal(18 * K, 2);
    for (float& number : x) number += 30;  // far from zero
    const Floats all = run(x);
    for (int64_t b = 0; b < 18; ++b) {
      const Doubles expected = matrix.times(reference::normalised(row(x, b, K), weight, bias, 1e-5));
      for (int64_t n = 0; n < N; ++n)
        CHECK(close(all[b * N + n], expected[n], 2e-4), N, K, b, n, all[b * N + n], expected[n], order);
    }
    for (const int64_t B : {1, 2, 3, 4, 5, 16}) {
      const Floats some = run({x.begin() + K, x.begin() + (1 + B) * K});
      CHECK(memcmp(some.data(), &all[N], some.size() * sizeof(float)) == 0, N, K, B, order);
    }
    x[2 * K] = NAN;
    const Floats with_nan = run({x.begin() + K, x.begin() + 4 * K});
    for (int64_t i = 0; i < 3 * N; ++i)
      CHECK(i / N == 1 ? std::isnan(with_nan[i]) : with_nan[i] == all[N + i], N, K, i, with_nan[i], order);
  }
};

template <class Weight>
void test_all(const char* order) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 3}, {33, 140}, {17, 2056}}) Case<Weight>{n, k}.test(order);
}

}  // namespace

int main() {
  CHECK((Case<float>{3, 5}.run({}).empty()));
  emulation::in_every_order([](const char* order) {
    test_all<float>(order);
    test_all<Bfloat16>(order);
    test_all<Float16>(order);
    test_all<int8_t>(order);
    test_all<Int4>(order);
  });
  return failures();
}
