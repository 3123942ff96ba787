// rwkv_engine::time_mixing4_step, channel_mixing4_step and blocks4_step on the CPU: check, allocate, launch, register.
// No arithmetic.
#pragma once

#include "bindings/mixing4_steps.h"

#include <torch/library.h>

#include "bindings/parallel.h"
#include "kernels/cpu/blocks4_step.h"
#include "kernels/cpu/channel_mixing4_step.h"
#include "kernels/cpu/time_mixing4_step.h"

namespace rwkv {
namespace {

// The state has S rows.
inline void check_slots(const char* op, const char* name, const int64_t* slots, int64_t B, int64_t S) {
  for (int64_t b = 0; slots && b < B; ++b)
    TORCH_CHECK(slots[b] >= 0 && slots[b] < S, op, ": ", name, ": row ", b, " has slot ", slots[b],
                ", expected one of the ", S, " rows of the state");
}

struct MixingOnCpu {
  template <class Step>
  static void launch(const char* op, const Step& step, int64_t S, const Tensor& x) {
    check_slots(op, "slots", step.slots, step.B, S);
    Tensor scratch = at::empty({cpu::scratch_bytes(step)}, x.options().dtype(at::kByte));
    run(step, scratch.data_ptr());
  }

 private:
  static void run(const TimeMixing4Step& step, void* scratch) { cpu::time_mixing4_step(step, scratch, torch_threads); }
  static void run(const ChannelMixing4Step& step, void* scratch) {
    cpu::channel_mixing4_step(step, scratch, torch_threads);
  }
};

// What a layer contributes to the lists of blocks4_step.
constexpr int64_t kParameters = 18, kScales = 7, kStates = 5;

Tensor blocks4_step(const Tensor& x, double eps, at::TensorList parameters, const ScalesList& scales,
                    at::TensorList state, const Slots& slots, const Slots& before) {
  static constexpr char op[] = "rwkv_engine::blocks4_step";
  const int64_t L = static_cast<int64_t>(parameters.size()) / kParameters, given = scales.size();
  TORCH_CHECK(static_cast<int64_t>(parameters.size()) == L * kParameters &&
                  static_cast<int64_t>(state.size()) == L * kStates && (given == 0 || given == L * kScales),
              op, ": expected ", kParameters, " parameters, ", kStates, " states and ", kScales,
              " scales for each layer, got ", parameters.size(), ", ", state.size(), " and ", given);
  StepArguments arguments(op, x, slots, before);
  const int64_t B = x.size(0), C = x.size(1);
  Tensor y = at::empty({B, C}, x.options()), between = at::empty({B, C}, x.options());
  if (L == 0) return y.copy_(x);
  std::vector<Block4Step> layers;
  layers.reserve(L);
  for (int64_t i = 0; i < L; ++i) {
    arguments.op = op + (": layer " + std::to_string(i));
    const auto p = parameters.slice(i * kParameters, kParameters);
    const auto s = state.slice(i * kStates, kStates);
    const auto scale = [&](int64_t j) { return given ? scales.get(i * kScales + j) : Scales{}; };
    Block4Step& layer = layers.emplace_back(Block4Step{
        arguments.time(p[0], p[1], eps, p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], s[0], s[1], s[2], s[3],
                       {scale(0), scale(1), scale(2), scale(3)}),
        arguments.channel(p[11], p[12], eps, p[13], p[14], p[15], p[16], p[17], s[4], {scale(4), scale(5), scale(6)}),
    });
    if (i > 0) layer.time.x = y.const_data_ptr<float>();
    layer.time.y = between.data_ptr<float>();
    layer.channel.x = between.const_data_ptr<float>();
    layer.channel.y = y.data_ptr<float>();
  }
  check_slots(op, "slots", layers[0].time.slots, B, arguments.rows_of_state);
  check_slots(op, "before", layers[0].time.before, B, arguments.rows_of_state);
  Tensor scratch = at::empty({cpu::scratch_bytes(layers)}, x.options().dtype(at::kByte));
  torch_team(cpu::largest_loop(layers),
             [&](const cpu::Run& run) { cpu::blocks4_step(layers, scratch.data_ptr(), run); });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) {
  m.impl("time_mixing4_step", &time_mixing4_step<MixingOnCpu>);
  m.impl("channel_mixing4_step", &channel_mixing4_step<MixingOnCpu>);
  m.impl("blocks4_step", &blocks4_step);
}

}  // namespace rwkv
