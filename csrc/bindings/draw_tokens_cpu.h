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
    for (int64_t b = 0; b < draw.B; ++b) {  // others would lead the kernel to tokens that are not there
      TORCH_CHECK(draw.temperatures[b] >= 0, "rwkv_engine::draw_tokens: temperatures: expected numbers >= 0, got ",
                  draw.temperatures[b], " in row ", b);
      TORCH_CHECK(draw.top_p[b] > 0, "rwkv_engine::draw_tokens: top_p: expected numbers in (0, 1], got ", draw.top_p[b],
                  " in row ", b);
    }
    cpu::draw_tokens(draw, torch_threads);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) { m.impl("draw_tokens", &draw_tokens<DrawOnCpu>); }

}  // namespace rwkv
