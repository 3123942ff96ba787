// RWKV-7's layers in one call have the same bits on any number of threads, in a team too, and whether the tokens of a
// sequence come in one call or one by one. What they compute is tested against a float64 oracle from Python.
#include "kernels/cpu/blocks7_step.h"

#include "mixing_reference.h"
#include "threads.h"

using namespace reference;

namespace {

constexpr int64_t kRank = 32;

template <class Weight>
struct Layer {
  int64_t B, C, H, N, F, A = H * N;
  bool is_first;
  Floats weight = normal(C), bias = normal(C), mixes = normal(kMixes7 * C), of_channels = normal(8 * A);
  RandomMatrix<Weight> receptance{A, C}, key{A, C}, value{A, C}, output{C, A}, channel_key{F, C};
  RandomMatrix<Weight> channel_value{F, C, Layout::input_major};
  RandomMatrix<float> w1{kRank, C}, w2{A, kRank}, a1{kRank, C}, a2{A, kRank}, g1{kRank, C}, g2{A, kRank};
  RandomMatrix<float> v1{is_first ? 0 : kRank, C}, v2{A, is_first ? 0 : kRank};
  Floats shift = normal(B * C), wkv = normal(B * A * N), channel_shift = normal(B * C);

  Block7Step step(const Slots& slots, Floats& first, Floats& to_shift, Floats& to_wkv, Floats& to_channel) const {
    const auto vector = [this](int i) { return of_channels.data() + i * A; };
    const LayerNorm norm{weight.data(), bias.data(), 1e-5f};
    Block7Step step{};
    step.time = {.B = B,
                 .C = C,
                 .H = H,
                 .N = N,
                 .x = nullptr,
                 .norm = norm,
                 .mixes = mixes.data(),
                 .w0 = vector(0),
                 .a0 = vector(1),
                 .v0 = is_first ? nullptr : vector(2),
                 .w = {w1.in_tiles(), w2.in_tiles()},
                 .a = {a1.in_tiles(), a2.in_tiles()},
                 .g = {g1.in_tiles(), g2.in_tiles()},
                 .v = {v1.in_tiles(), v2.in_tiles()},
                 .k_k = vector(3),
                 .k_a = vector(4),
                 .r_k = vector(5),
                 .heads = {vector(6), vector(7), kGroupNorm7Eps},
                 .receptance = receptance.in_tiles(),
                 .key = key.in_tiles(),
                 .value = value.in_tiles(),
                 .output = output.in_tiles(),
                 .first = first.data(),
                 .shift = to_shift.data() + slots.offset(C),
                 .wkv = to_wkv.data() + slots.offset(A * N),
                 .shift_stride = slots.stride(C),
                 .wkv_stride = slots.stride(A * N),
                 .slots = slots.data(),
                 .before = nullptr,
                 .y = nullptr};
    step.channel = {.B = B,
                    .C = C,
                    .F = F,
                    .x = nullptr,
                    .norm = norm,
                    .mix = mixes.data(),
                    .key = channel_key.in_tiles(),
                    .value = channel_value.transposed(),
                    .shift = to_channel.data() + slots.offset(C),
                    .shift_stride = slots.stride(C),
                    .slots = slots.data(),
                    .before = nullptr,
                    .y = nullptr};
    return step;
  }
};

template <class Weight>
struct Layers {
  int64_t B, C, A;
  std::vector<Layer<Weight>> layers;
  Slots slots;
  Floats x;

  Layers(int64_t B, int64_t C, int64_t H, int64_t N, int64_t F, bool apart)
      : B(B), C(C), A(H * N), slots(B, apart), x(normal(B * C)) {
    for (bool is_first : {true, false, false}) layers.push_back({B, C, H, N, F, H * N, is_first});
  }

  // The bytes of the last y, of the values of layer 0 and of all states. Calls fn with the layers.
  template <class Function>
  std::string outcome(const Function& fn) const {
    Floats between(B * C, NAN), y(B * C, NAN), first(B * A, NAN);
    std::vector<Floats> states;
    std::vector<Block7Step> steps;
    states.reserve(3 * layers.size());
    for (const Layer<Weight>& layer : layers) {
      Floats& shift = states.emplace_back(slots.spread(layer.shift, C));
      Floats& wkv = states.emplace_back(slots.spread(layer.wkv, A * layer.N));
      Floats& channel = states.emplace_back(slots.spread(layer.channel_shift, C));
      Block7Step& step = steps.emplace_back(layer.step(slots, first, shift, wkv, channel));
      step.time.x = steps.size() > 1 ? y.data() : x.data();
      step.time.y = between.data(), step.channel.x = between.data(), step.channel.y = y.data();
    }
    fn(std::span<const Block7Step>(steps));
    std::string bytes = bytes_of(y) + bytes_of(first);
    for (size_t i = 0; i < states.size(); ++i) {
      slots.check_others(states[i], i % 3 == 1 ? A * layers[0].N : C);
      bytes += bytes_of(states[i]);
    }
    return bytes;
  }
};

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
