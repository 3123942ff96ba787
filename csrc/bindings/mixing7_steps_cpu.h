// rwkv_engine::blocks7_step on the CPU: check, allocate, launch, register. No arithmetic.
#pragma once

#include <torch/library.h>

#include "bindings/mixing4_steps_cpu.h"
#include "bindings/mixing7_steps.h"
#include "bindings/parallel.h"
#include "kernels/cpu/blocks7_step.h"

namespace rwkv {
namespace {

struct Layers7OnCpu {
  static void launch(const char* op, const std::vector<Block7Step>& layers, int64_t S, const Tensor& x) {
    const TimeMixing7Step& first = layers[0].time;
    check_slots(op, "slots", first.slots, first.B, S);
    check_slots(op, "before", first.before, first.B, S);
    Tensor scratch = at::empty({cpu::scratch_bytes(layers)}, x.options().dtype(at::kByte));
    torch_team(cpu::largest_loop(layers),
               [&](const cpu::Run& run) { cpu::blocks7_step(layers, scratch.data_ptr(), run); });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) { m.impl("blocks7_step", &blocks7_step<Layers7OnCpu>); }

}  // namespace rwkv
