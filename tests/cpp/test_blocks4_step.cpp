// Consecutive layers in one call have the bits of their halves one after the other, on any number of threads, in a team
// too.
#include "kernels/cpu/blocks4_step.h"

#include "kernels/cpu/channel_mixing4_step.h"
#include "kernels/cpu/time_mixing4_step.h"
#include "mixing_reference.h"
#include "threads.h"

using namespace reference;

namespace {

template <class Weight>
struct Layers {
  std::vector<TimeMixing<Weight>> time;
  std::vector<ChannelMixing<Weight>> channel;
  Slots slots;

  Layers(int64_t n, int64_t B, int64_t C, int64_t A, int64_t F, bool apart) : slots(B, apart) {
    for (int64_t i = 0; i < n; ++i) time.emplace_back(B, C, A), channel.emplace_back(B, C, F);
  }

  // The bytes of the last y and of all states. Calls fn with the layers; between them, x and y are as in the binding.
  template <class Function>
  std::string outcome(const Function& fn) const {
    std::vector<typename TimeMixing<Weight>::Outcome> of_time;
    std::vector<typename ChannelMixing<Weight>::Outcome> of_channel;
    for (size_t i = 0; i < time.size(); ++i)
      of_time.push_back(time[i].before(slots)), of_channel.push_back(channel[i].before(slots));
    Floats between(time[0].x.size(), NAN), y(time[0].x.size(), NAN);
    std::vector<Block4Step> steps;
    for (size_t i = 0; i < time.size(); ++i) {
      Block4Step step{time[i].step(slots, of_time[i]), channel[i].step(slots, of_channel[i])};
      if (i > 0) step.time.x = y.data();
      step.time.y = between.data(), step.channel.x = between.data(), step.channel.y = y.data();
      steps.push_back(step);
    }
    fn(std::span<const Block4Step>(steps));
    std::string bytes = bytes_of(y);
    for (size_t i = 0; i < time.size(); ++i)
      bytes += bytes_of(of_time[i].shift, of_time[i].num, of_time[i].den, of_time[i].max, of_channel[i].shift);
    return bytes;
  }
};

std::vector<char> scratch_of(int64_t bytes) { return std::vector<char>(bytes, -1); }  // NaN

template <class Weight>
void test_layers(int64_t B, int64_t C, int64_t A, int64_t F, bool apart) {
  const Layers<Weight> layers(3, B, C, A, F, apart);
  const std::string expected = layers.outcome([](std::span<const Block4Step> steps) {
    for (const auto& [time, channel] : steps) {
      auto of_time = scratch_of(cpu::scratch_bytes(time)), of_channel = scratch_of(cpu::scratch_bytes(channel));
      cpu::time_mixing4_step(time, of_time.data(), on_threads(1));
      cpu::channel_mixing4_step(channel, of_channel.data(), on_threads(1));
    }
  });
  const auto together = [&](const cpu::Run& run) {
    return layers.outcome([&](std::span<const Block4Step> steps) {
      auto scratch = scratch_of(cpu::scratch_bytes(steps));
      cpu::blocks4_step(steps, scratch.data(), run);
    });
  };
  for (int threads = 1; threads <= most_threads(); ++threads) {
    CHECK(together(on_threads(threads)) == expected, threads, B, C, A, F, apart);
    std::string in_team;
    with_team(threads, [&](const cpu::Run& run) {
      // As if each loop had much work, so that it is divided.
      in_team = together([&](int64_t n, int64_t, const cpu::Range& fn) { run(n, 1 << 20, fn); });
    });
    CHECK(in_team == expected, threads, B, C, A, F, apart);
  }
}

// The tokens of one sequence in one call: each row begins from the slot of the row before it, which is the next slot.
template <class Weight>
void test_chain(int64_t B, int64_t C, int64_t A, int64_t F) {
  const Layers<Weight> layers(2, B, C, A, F, true);
  const std::vector<int64_t>& slots = layers.slots.of_row;
  std::vector<int64_t> before(slots.begin(), slots.end() - 1);
  before.insert(before.begin(), slots.back());  // the state of the last row, before that row replaces it
  const std::string expected = layers.outcome([&](std::span<const Block4Step> steps) {
    for (int64_t b = 0; b < B; ++b)
      for (auto [time, channel] : steps) {
        time.B = channel.B = 1;
        time.x += b * C, time.y += b * C, channel.x += b * C, channel.y += b * C;
        time.slots = channel.slots = &slots[b], time.before = channel.before = &before[b];
        auto of_time = scratch_of(cpu::scratch_bytes(time)), of_channel = scratch_of(cpu::scratch_bytes(channel));
        cpu::time_mixing4_step(time, of_time.data(), on_threads(1));
        cpu::channel_mixing4_step(channel, of_channel.data(), on_threads(1));
      }
  });
  for (int threads = 1; threads <= most_threads(); ++threads) {
    std::string in_team;
    with_team(threads, [&](const cpu::Run& run) {
      in_team = layers.outcome([&](std::span<const Block4Step> steps) {
        std::vector<Block4Step> chained(steps.begin(), steps.end());
        for (auto& [time, channel] : chained) time.before = channel.before = before.data();
        auto scratch = scratch_of(cpu::scratch_bytes(chained));
        cpu::blocks4_step(chained, scratch.data(),
                          [&](int64_t n, int64_t, const cpu::Range& fn) { run(n, 1 << 20, fn); });
      });
    });
    CHECK(in_team == expected, threads, B, C, A, F);
  }
}

template <class Weight>
void test_all() {
  test_layers<Weight>(1, 1, 1, 1, false);
  test_layers<Weight>(1, 40, 130, 300, false);
  test_layers<Weight>(5, 33, 17, 65, true);
  test_layers<Weight>(16, 17, 33, 40, true);
  test_chain<Weight>(9, 33, 17, 65);
  test_chain<Weight>(16, 40, 130, 300);
}

}  // namespace

int main() {
  const std::span<const Block4Step> none;
  CHECK(cpu::scratch_bytes(none) == 0 && cpu::largest_loop(none) == 0);
  test_all<float>();
  test_all<Bfloat16>();
  test_all<Float16>();
  test_all<int8_t>();
  test_all<Int4>();
  return failures();
}
