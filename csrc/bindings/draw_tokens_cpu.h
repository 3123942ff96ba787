// rwkv_engine::draw_tokens on the CPU: check, allocate, launch, register. No arithmetic.
#pragma once

#include <torch/library.h>

#include "bindings/draw_tokens.h"
#include "bindings/parallel.h"
#include "kernels/cpu/draw_tokens.h"

namespace rwkv {
namespace {

struct DrawOnCpu {
  explicit DrawOnCpu(at::Device) {}

  template <class Logit>
  void draw_tokens(const DrawTokens<Logit>& draw, const Tensor&) const {
    cpu::draw_tokens(draw, torch_threads);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) { m.impl("draw_tokens", &draw_tokens<DrawOnCpu>); }

}  // namespace rwkv
