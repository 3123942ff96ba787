// Channel mixing of one token in each of B sequences, with its residual. Torch-free.
//
// Two passes over weights: key and receptance; then the value product, which reads the value matrix input by input and
// leaves out the inputs where relu(k)^2 is zero in all sequences: in trained models nearly nine of ten.
#pragma once

#include "kernels/cpu/ln_shift.h"
#include "kernels/cpu/parallel.h"
#include "kernels/slots.h"

namespace rwkv::cpu {

// B sequences, C wide, F channels inside. Key and receptance are in tiles. The state's rows begin `shift_stride` apart;
// those in `slots` are replaced.
template <class Weight>
struct ChannelMixingStep {
  int64_t B, C, F;
  const float* x;  // (B, C)
  LayerNorm norm;
  const float *mix_k, *mix_r;      // (C,)
  const Weight *key, *receptance;  // (F, C), (C, C)
  const Weight* value;             // (F, C), row f holds what input f adds to the C outputs
  float* shift;
  int64_t shift_stride;
  const int64_t* slots;  // (B,) or null, see slot_of
  float* y;              // (B, C)

  int64_t scratch() const { return B * (C + 2 * whole_tiles(C) + F + C); }  // numbers needed beside
  static int64_t whole_tiles(int64_t inputs) { return tiles_per_block<Weight>(inputs) * kTileInputs<Weight>; }
};

template <class Weight>
void channel_mixing_step(const ChannelMixingStep<Weight>& step, float* scratch, const Run& run);

}  // namespace rwkv::cpu
