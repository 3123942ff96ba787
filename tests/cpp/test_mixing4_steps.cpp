// Tiles, products with them and both mixing steps against their definitions in double precision, at odd sizes and on
// any number of threads.
#include "kernels/cpu/channel_mixing4_step.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/time_mixing4_step.h"
#include "kernels/math.h"
#include "mixing_reference.h"
#include "threads.h"

using namespace reference;

namespace {

template <class Weight>
void test_tiles(int64_t N, int64_t K) {
  const RandomMatrix<Weight> matrix(N, K);
  std::vector<Weight> tiles(matrix.tiles.size()), rows(N * K);
  check_same_bits([&](const cpu::Run& run) {
    cpu::tile(matrix.rows.data(), N, K, tiles.data(), run);
    cpu::untile(tiles.data(), N, K, rows.data(), run);
    return bytes_of(tiles, rows);
  });
  CHECK(memcmp(tiles.data(), matrix.tiles.data(), tiles.size() * sizeof(Weight)) == 0, N, K);
  CHECK(memcmp(rows.data(), matrix.rows.data(), rows.size() * sizeof(Weight)) == 0, N, K);
}

template <class Weight>
void test_linear(int64_t N, int64_t K, int64_t B) {
  const RandomMatrix<Weight> matrix(N, K);
  const Floats x = normal(B * K);
  Floats y(B * N);
  const cpu::Linear linear{B, x.data(), matrix.in_tiles(), y.data()};
  check_same_bits([&](const cpu::Run& run) {
    std::vector<char> scratch(linear.scratch_bytes(), -1);
    cpu::linear(linear, scratch.data(), run);
    return bytes_of(y);
  });
  for (int64_t b = 0; b < B; ++b) {
    const Doubles expected = matrix.times(row(x, b, K), true);
    for (int64_t n = 0; n < N; ++n) CHECK(close(y[b * N + n], expected[n]), N, K, b, n, y[b * N + n], expected[n]);
  }
}

template <class Step, class Arguments>
void test_step(Arguments arguments, void (*kernel)(const Step&, void*, const cpu::Run&), const Slots& slots) {
  arguments.rounds = true;
  typename Arguments::Outcome outcome;
  check_same_bits([&](const cpu::Run& run) {
    outcome = arguments.before(slots);
    const Step step = arguments.step(slots, outcome);
    std::vector<char> scratch(cpu::scratch_bytes(step), -1);  // NaN
    kernel(step, scratch.data(), run);
    if constexpr (requires { outcome.num; })
      return bytes_of(outcome.shift, outcome.num, outcome.den, outcome.max, outcome.y);
    else
      return bytes_of(outcome.shift, outcome.y);
  });
  arguments.compare(slots, outcome);
}

template <class Weight>
void test_all() {
  for (const int64_t B : {1, 2, 5, 16}) {
    test_linear<Weight>(33, 1100, B);  // several groups of quantised activations
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {16, 32}, {17, 33}, {40, 130}, {130, 31}}) {
      if constexpr (!std::is_same_v<Weight, Int4>) test_tiles<Weight>(n, k);
      test_linear<Weight>(n, k, B);
      for (const bool apart : {false, true}) {
        test_step(TimeMixing<Weight>(B, n, k), &cpu::time_mixing4_step, {B, apart});
        test_step(ChannelMixing<Weight>(B, n, k), &cpu::channel_mixing4_step, {B, apart});
      }
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
  test_all<int8_t>();
  test_all<Int4>();
  return failures();
}
