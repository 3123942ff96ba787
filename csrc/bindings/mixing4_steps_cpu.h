// rwkv_engine::time_mixing4_step and channel_mixing4_step on the CPU: check, allocate, launch, register. No arithmetic.
#pragma once

#include "bindings/mixing4_steps.h"

#include <torch/library.h>

#include "bindings/parallel.h"
#include "kernels/cpu/channel_mixing4_step.h"
#include "kernels/cpu/time_mixing4_step.h"

namespace rwkv {
namespace {

struct MixingOnCpu {
  template <class Step>
  static void launch(const char* op, const Step& step, int64_t S, const Tensor& x) {
    for (int64_t b = 0; step.slots && b < step.B; ++b)
      TORCH_CHECK(step.slots[b] >= 0 && step.slots[b] < S, op, ": slots: row ", b, " has slot ", step.slots[b],
                  ", expected one of the ", S, " rows of the state");
    Tensor scratch = at::empty({cpu::scratch_bytes(step)}, x.options().dtype(at::kByte));
    run(step, scratch.data_ptr());
  }

 private:
  static void run(const TimeMixing4Step& step, void* scratch) { cpu::time_mixing4_step(step, scratch, torch_threads); }
  static void run(const ChannelMixing4Step& step, void* scratch) {
    cpu::channel_mixing4_step(step, scratch, torch_threads);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) {
  m.impl("time_mixing4_step", &time_mixing4_step<MixingOnCpu>);
  m.impl("channel_mixing4_step", &channel_mixing4_step<MixingOnCpu>);
}

}  // namespace rwkv
