// The first part of both mixing steps: LayerNorm, token shift and the inputs of products. Torch-free.
#pragma once

#include <algorithm>
#include <array>

#include "kernels/cpu/ln_shift.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile_product.h"
#include "kernels/slots.h"

namespace rwkv::cpu {

// A mix of this token and the last, and the matrix for which it is prepared.
struct StepInput {
  const float* mix;  // (C,)
  const Matrix& matrix;
  void* prepared;
};

// Writes the LayerNorm of the step's B rows to `now` (B, C) and to the state's shift, and prepares their mixes.
template <class Step, size_t n>
void prepare_step(const Step& step, const std::array<StepInput, n>& inputs, float* now, const Run& run) {
  const int64_t B = step.B, C = step.C;
  const auto shift_in = [&step](int64_t slot) { return step.shift + slot * step.shift_stride; };
  run(B, 16 * C, [=, &step, &inputs](int64_t begin, int64_t end) {
    const auto [mixed, earlier] = thread_buffers<float, float>(C, C);
    for (int64_t b = begin; b < end; ++b) {
      layer_norm(step.x + b * C, C, step.norm, now + b * C);
      const float* last = shift_in(origin_of(step.before, step.slots, b));
      if (const int64_t row = predecessor_of(step.before, step.slots, b); row >= 0) {
        layer_norm(step.x + row * C, C, step.norm, earlier);  // again, because another thread may still compute it
        last = earlier;
      }
      for (const StepInput& input : inputs) {
        token_shift(now + b * C, last, input.mix, C, mixed);
        prepare(input.matrix, mixed, b, B, input.prepared);
      }
    }
  });
  // One thread does this, because the padding rows of a batch may share a slot.
  for (int64_t b = 0; b < B; ++b) std::copy_n(now + b * C, C, shift_in(slot_of(step.slots, b)));
}

}  // namespace rwkv::cpu
