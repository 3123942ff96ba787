// rwkv_engine::time_mixing_step and channel_mixing_step on the CPU: check, allocate, launch, register. No arithmetic.
#include "bindings/mixing_steps.h"

#include <torch/library.h>

#include "bindings/parallel.h"
#include "kernels/cpu/channel_mixing_step.h"
#include "kernels/cpu/time_mixing_step.h"

namespace rwkv {
namespace {

struct Cpu {
  template <class Step>
  static void launch(const char* op, const Step& step, int64_t S, const Tensor& x) {
    for (int64_t b = 0; step.slots && b < step.B; ++b)
      TORCH_CHECK(step.slots[b] >= 0 && step.slots[b] < S, op, ": slots: row ", b, " has slot ", step.slots[b],
                  ", expected one of the ", S, " rows of the state");
    Tensor scratch = at::empty({cpu::scratch(step)}, x.options().dtype(at::kByte));
    run(step, scratch.data_ptr());
  }

 private:
  static void run(const TimeMixingStep& step, void* scratch) { cpu::time_mixing_step(step, scratch, torch_threads(1)); }
  static void run(const ChannelMixingStep& step, void* scratch) {
    cpu::channel_mixing_step(step, scratch, torch_threads(1));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) {
  m.impl("time_mixing_step", &time_mixing_step<Cpu>);
  m.impl("channel_mixing_step", &channel_mixing_step<Cpu>);
}

}  // namespace rwkv
