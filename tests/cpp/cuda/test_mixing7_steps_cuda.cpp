// RWKV-7's layers on an emulated device: against the kernels of the CPU, which are tested against a float64 oracle, and
// bit for bit against themselves.
#include "kernels/cpu/blocks7_step.h"
#include "kernels/cuda/channel_mixing7_step.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/time_mixing7_step.h"
#include "layers7.h"

using namespace reference;

namespace {

// In a thread of its own: the emulation overwrites the thread_local buffers of this one.
void run_on_cpu(std::span<const Block7Step> steps) {
  std::vector<char> scratch(cpu::scratch_bytes(steps));
  cpu::blocks7_step(steps, scratch.data(), on_threads(1));
}

void run_on_device(std::span<const Block7Step> steps) {
  for (const auto& [time, channel] : steps) {
    Floats scratch(cuda::scratch_bytes(time) / sizeof(float), NAN);
    CHECK(cuda::time_mixing7_step(time, scratch.data(), nullptr) == cudaSuccess);
    scratch = Floats(cuda::scratch_bytes(channel) / sizeof(float), NAN);
    CHECK(cuda::channel_mixing7_step(channel, scratch.data(), nullptr) == cudaSuccess);
  }
}

// The CPU rounds the activations beside integer weights, which passes through three layers.
template <class Weight, class Low>
void compare(const Layers<Weight, Low>& layers) {
  const std::vector<Floats> got = layers.results(run_on_device), expected = layers.results(run_on_cpu);
  const double tolerance = kQuantised<Weight> ? 2e-3 : 5e-5;
  for (size_t i = 0; i < got.size(); ++i)
    for (size_t j = 0; j < got[i].size(); ++j) {
      const double g = got[i][j], e = expected[i][j];
      CHECK(std::isnan(e) ? std::isnan(g) : std::abs(g - e) < tolerance * (1 + std::abs(e)), i, j, g, e, layers.B,
            layers.C, layers.A);
    }
}

// Sizes of tiles, heads and words that fit, and that do not; more than one group of 16 rows.
template <class Weight, class Low>
void test_sizes() {
  compare(Layers<Weight, Low>(1, 40, 2, 32, 130, false));
  compare(Layers<Weight, Low>(3, 33, 1, 20, 65, true));
  compare(Layers<Weight, Low>(18, 17, 2, 16, 40, true));
}

// All widths of a head that have kernels of their own, with rows that do not fill the last warp.
void test_heads() {
  for (const int64_t N : {1, 64, 100, 200}) compare(Layers<float>(2, 24, 2, N, 40, true));
  const Layers<float> wide(1, 8, 1, 257, 8, false);
  wide.results([](std::span<const Block7Step> steps) {
    Floats scratch(cuda::scratch_bytes(steps[0].time) / sizeof(float));
    CHECK(cuda::time_mixing7_step(steps[0].time, scratch.data(), nullptr) == cudaErrorInvalidValue);
  });
}

// Keys that are zero have no direction: the state is only multiplied by the decay.
void test_zero_keys() {
  Layers<float> layers(2, 24, 2, 16, 40, false);
  for (auto& layer : layers.layers)
    layer.key = RandomMatrix<float>(layer.A, layer.C, [](int64_t, int64_t) { return 0.0f; });
  compare(layers);
}

// Rows b to b + count of layers whose rows are as they come.
template <class Weight>
Layers<Weight> some_rows(Layers<Weight> all, int64_t b, int64_t count) {
  const auto keep = [=](Floats& rows, int64_t width) {
    rows = Floats(rows.begin() + b * width, rows.begin() + (b + count) * width);
  };
  keep(all.x, all.C);
  for (auto& layer : all.layers) {
    keep(layer.shift, layer.C), keep(layer.wkv, layer.A * layer.N), keep(layer.channel_shift, layer.C);
    layer.B = count;
  }
  all.B = count, all.slots = Slots(count, false);
  return all;
}

// The bits of a row do not depend on the rows beside it, nor does a NaN pass from one to another.
template <class Weight>
void test_rows_are_independent() {
  constexpr int64_t B = 16;
  Layers<Weight> layers(B, 40, 2, 20, 65, false);
  const auto same_row = [](const std::vector<Floats>& all, int64_t b, const std::vector<Floats>& some, int64_t at) {
    bool same = true;
    for (size_t i = 0; i < all.size(); ++i) {
      const size_t width = all[i].size() / B;
      same = same && memcmp(&all[i][b * width], &some[i][at * width], width * sizeof(float)) == 0;
    }
    return same;
  };
  const auto all = layers.results(run_on_device);
  for (const auto& [b, count] : {std::pair<int64_t, int64_t>{15, 1}, {6, 2}, {9, 3}, {3, 7}}) {
    const auto some = some_rows(layers, b, count).results(run_on_device);
    for (int64_t i = 0; i < count; ++i) CHECK(same_row(all, b + i, some, i), b, count, i);
  }
  layers.x[3 * layers.C] = NAN;
  const auto with_nan = layers.results(run_on_device);
  for (int64_t b = 0; b < B; ++b) CHECK(same_row(all, b, with_nan, b) == (b != 3), b);
  for (int64_t c = 0; c < layers.C; ++c) CHECK(std::isnan(with_nan[0][3 * layers.C + c]), c);
}

}  // namespace

int main() {
  emulation::in_every_order([](const char*) { compare(Layers<Bfloat16, Bfloat16>(5, 300, 1, 20, 40, false)); });
  if (failure_count()) return failures();  // a barrier is missing: the rest has no more to say
  test_sizes<float, float>();
  test_sizes<Bfloat16, Bfloat16>();
  test_sizes<Float16, Float16>();
  test_sizes<int8_t, Float16>();
  test_sizes<Int4, Bfloat16>();
  test_heads();
  test_zero_keys();
  test_rows_are_independent<Bfloat16>();
  test_rows_are_independent<int8_t>();
  return failures();
}
