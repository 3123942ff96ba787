// RWKV-7's layers in one call have the same bits on any number of threads, in a team too, and whether the tokens of a
// sequence come in one call or one by one. What they compute is tested against a float64 oracle from Python.
#include "kernels/cpu/blocks7_step.h"

#include "layers7.h"
#include "threads.h"

using namespace reference;

namespace {

void run_layers(std::span<const Block7Step> steps, const cpu::Run& run) {
  std::vector<char> scratch(cpu::scratch_bytes(steps), -1);  // NaN
  // As if each loop had much work, so that it is divided.
  cpu::blocks7_step(steps, scratch.data(), [&](int64_t n, int64_t, const cpu::Range& fn) { run(n, 1 << 20, fn); });
}

template <class Weight>
void test_layers(int64_t B, int64_t C, int64_t H, int64_t N, int64_t F, bool apart) {
  const Layers<Weight> layers(B, C, H, N, F, apart);
  const auto together = [&](const cpu::Run& run) {
    return layers.outcome([&](std::span<const Block7Step> steps) { run_layers(steps, run); });
  };
  const std::string expected = together(on_threads(1));
  for (int threads = 2; threads <= most_threads(); ++threads) {
    CHECK(together(on_threads(threads)) == expected, threads, B, C, H, N, F, apart);
    std::string in_team;
    with_team(threads, [&](const cpu::Run& run) { in_team = together(run); });
    CHECK(in_team == expected, threads, B, C, H, N, F, apart);
  }
}

// The tokens of one sequence in one call: each row begins from the slot of the row before it, which is the next slot.
template <class Weight>
void test_chain(int64_t B, int64_t C, int64_t H, int64_t N, int64_t F) {
  const Layers<Weight> layers(B, C, H, N, F, true);
  const std::vector<int64_t>& slots = layers.slots.of_row;
  std::vector<int64_t> before(slots.begin(), slots.end() - 1);
  before.insert(before.begin(), slots.back());  // the state of the last row, before that row replaces it
  const std::string expected = layers.outcome([&](std::span<const Block7Step> steps) {
    for (int64_t b = 0; b < B; ++b) {
      std::vector<Block7Step> one(steps.begin(), steps.end());
      for (auto& [time, channel] : one) {
        time.B = channel.B = 1, time.first += b * time.A();
        time.x += b * C, time.y += b * C, channel.x += b * C, channel.y += b * C;
        time.slots = channel.slots = &slots[b], time.before = channel.before = &before[b];
      }
      run_layers(one, on_threads(1));
    }
  });
  for (int threads = 1; threads <= most_threads(); ++threads) {
    std::string in_team;
    with_team(threads, [&](const cpu::Run& run) {
      in_team = layers.outcome([&](std::span<const Block7Step> steps) {
        std::vector<Block7Step> chained(steps.begin(), steps.end());
        for (auto& [time, channel] : chained) time.before = channel.before = before.data();
        run_layers(chained, run);
      });
    });
    CHECK(in_team == expected, threads, B, C, H, N, F);
  }
}

template <class Weight>
void test_all() {
  test_layers<Weight>(1, 40, 2, 32, 300, false);
  test_layers<Weight>(5, 33, 1, 20, 65, true);
  test_layers<Weight>(16, 17, 3, 16, 40, true);
  test_chain<Weight>(9, 40, 2, 32, 65);
}

}  // namespace

int main() {
  test_all<float>();
  test_all<Bfloat16>();
  test_all<int8_t>();
  test_all<Int4>();
  return failures();
}
