// Three random layers of RWKV-7, the first of which mixes no values; for the tests on every device.
#pragma once

#include <span>
#include <string>

#include "kernels/mixing7_steps.h"
#include "mixing_reference.h"
#include "threads.h"

namespace reference {

constexpr int64_t kRank = 32;

// Low are the weights of low-rank factors.
template <class Weight, class Low>
struct Layer {
  int64_t B, C, H, N, F, A = H * N;
  bool is_first;
  Floats weight = normal(C), bias = normal(C), mixes = normal(kMixes7 * C), of_channels = normal(8 * A);
  RandomMatrix<Weight> receptance{A, C}, key{A, C}, value{A, C}, output{C, A}, channel_key{F, C};
  RandomMatrix<Weight> channel_value{F, C, Layout::input_major};
  RandomMatrix<Low> w1{kRank, C}, w2{A, kRank}, a1{kRank, C}, a2{A, kRank}, g1{kRank, C}, g2{A, kRank};
  RandomMatrix<Low> v1{is_first ? 0 : kRank, C}, v2{A, is_first ? 0 : kRank};
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

template <class Weight, class Low = float>
struct Layers {
  int64_t B, C, A;
  std::vector<Layer<Weight, Low>> layers;
  Slots slots;
  Floats x;

  Layers(int64_t B, int64_t C, int64_t H, int64_t N, int64_t F, bool apart)
      : B(B), C(C), A(H * N), slots(B, apart), x(normal(B * C)) {
    for (bool is_first : {true, false, false}) layers.push_back({B, C, H, N, F, H * N, is_first});
  }

  // The last y, the values of layer 0 and all states. Calls fn with the layers.
  template <class Function>
  std::vector<Floats> results(const Function& fn) const {
    Floats between(B * C, NAN), y(B * C, NAN), first(B * A, NAN);
    std::vector<Floats> states;
    std::vector<Block7Step> steps;
    states.reserve(3 * layers.size());
    for (const Layer<Weight, Low>& layer : layers) {
      Floats& shift = states.emplace_back(slots.spread(layer.shift, C));
      Floats& wkv = states.emplace_back(slots.spread(layer.wkv, A * layer.N));
      Floats& channel = states.emplace_back(slots.spread(layer.channel_shift, C));
      Block7Step& step = steps.emplace_back(layer.step(slots, first, shift, wkv, channel));
      step.time.x = steps.size() > 1 ? y.data() : x.data();
      step.time.y = between.data(), step.channel.x = between.data(), step.channel.y = y.data();
    }
    fn(std::span<const Block7Step>(steps));
    for (size_t i = 0; i < states.size(); ++i) slots.check_others(states[i], i % 3 == 1 ? A * layers[0].N : C);
    states.insert(states.begin(), {y, first});
    return states;
  }

  // The bytes of all results.
  template <class Function>
  std::string outcome(const Function& fn) const {
    std::string bytes;
    for (const Floats& result : results(fn)) bytes += bytes_of(result);
    return bytes;
  }
};

}  // namespace reference
