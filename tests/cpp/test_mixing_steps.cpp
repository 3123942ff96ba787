// Tiles, products with them and both mixing steps against their definitions in double precision, at odd sizes and with
// work cut into odd pieces.
#include "kernels/cpu/channel_mixing_step.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/time_mixing_step.h"
#include "kernels/math.h"
#include "mixing_reference.h"

using namespace reference;

namespace {

// Pieces of three, last one first.
void in_pieces(int64_t n, const cpu::Range& fn) {
  for (int64_t end = n; end > 0; end -= 3) fn(std::max<int64_t>(0, end - 3), end);
}

template <class Weight>
void test_tiles(int64_t N, int64_t K) {
  const RandomMatrix<Weight> matrix(N, K);
  std::vector<Weight> tiles(matrix.tiles.size()), rows(N * K);
  cpu::tile(matrix.rows.data(), N, K, tiles.data(), in_pieces);
  CHECK(memcmp(tiles.data(), matrix.tiles.data(), tiles.size() * sizeof(Weight)) == 0, N, K);
  cpu::untile(tiles.data(), N, K, rows.data(), in_pieces);
  CHECK(memcmp(rows.data(), matrix.rows.data(), rows.size() * sizeof(Weight)) == 0, N, K);
}

template <class Weight>
void test_linear(int64_t N, int64_t K, int64_t B) {
  const RandomMatrix<Weight> matrix(N, K);
  const Floats x = normal(B * K);
  Floats y(B * N);
  const cpu::Linear linear{B, x.data(), matrix.in_tiles(), y.data()};
  std::vector<char> scratch(linear.scratch());
  cpu::linear(linear, scratch.data(), in_pieces);
  for (int64_t b = 0; b < B; ++b) {
    const Doubles expected = matrix.times(row(x, b, K), true);
    for (int64_t n = 0; n < N; ++n) CHECK(close(y[b * N + n], expected[n]), N, K, b, n, y[b * N + n], expected[n]);
  }
}

template <class Step, class Arguments>
void test_step(Arguments arguments, void (*kernel)(const Step&, void*, const cpu::Run&), const Slots& slots) {
  arguments.rounds = true;
  auto outcome = arguments.before(slots);
  const Step step = arguments.step(slots, outcome);
  std::vector<char> scratch(cpu::scratch(step), -1);  // NaN
  kernel(step, scratch.data(), in_pieces);
  arguments.compare(slots, outcome);
}

template <class Weight>
void test_all() {
  for (const int64_t B : {1, 2, 5, 16})
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {16, 32}, {17, 33}, {40, 130}, {130, 31}}) {
      test_tiles<Weight>(n, k);
      test_linear<Weight>(n, k, B);
      for (const bool apart : {false, true}) {
        test_step(TimeMixing<Weight>(B, n, k), &cpu::time_mixing_step, {B, apart});
        test_step(ChannelMixing<Weight>(B, n, k), &cpu::channel_mixing_step, {B, apart});
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
  return failures();
}
