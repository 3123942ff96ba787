// Arguments of blocks7_step on every device: one token in each of B sequences, width C, H heads of N channels, A = H N.
// Torch-free.
//
// Matrices are in tiles unless stated otherwise. Rows of the state have the strides `shift_stride` and `wkv_stride`;
// those in `slots` are replaced. y must not be x. Rows take their turns in order, see kernels/mixing4_steps.h.
#pragma once

#include "kernels/layer_norm.h"
#include "kernels/matrix.h"
#include "kernels/slots.h"

namespace rwkv {

// The published models divide the outputs by 8 before a normalisation with 1e-5, which is the same.
constexpr float kGroupNorm7Eps = 64e-5f;

constexpr float kDecay7 = -0.60653065971263342f;  // -e^(-1/2): the decay is between its exponential and 1

// The product W2 f(W1 x) of two narrow matrices with float weights: W1 (rank, C) and W2 (A, rank).
struct LowRank {
  Matrix first, second;
};

// The mixes of this token and the last that are inputs of products, in their order in `mixes`.
enum class Mix7 { r, w, k, v, a, g };
constexpr int64_t kMixes7 = 6;

struct TimeMixing7Step {
  int64_t B, C, H, N;
  const float* x;  // (B, C)
  LayerNorm norm;
  const float* mixes;                     // (6, C), the weights of this token
  const float *w0, *a0, *v0;              // (A,)
  LowRank w, a, g, v;                     // the rank of v is 0 in layer 0, which mixes no values
  const float *k_k, *k_a, *r_k;           // (A,)
  LayerNorm heads;                        // (A,), applied to each head
  Matrix receptance, key, value, output;  // (A, C) thrice, (C, A)
  float* first;                           // (B, A), the values of layer 0, which writes them
  float *shift, *wkv;                     // wkv (H, N, N): rows are values and columns are keys
  int64_t shift_stride, wkv_stride;
  const int64_t *slots, *before;  // (B,) or null, see slot_of and origin_of
  float* y;                       // (B, C)

  RWKV_HOST_DEVICE int64_t A() const { return H * N; }
  RWKV_HOST_DEVICE bool mixes_values() const { return v.first.N > 0; }
};

// F is the width of the key.
struct ChannelMixing7Step {
  int64_t B, C, F;
  const float* x;  // (B, C)
  LayerNorm norm;
  const float* mix;  // (C,), the weight of this token
  Matrix key;        // (F, C)
  Matrix value;      // (C, F), input-major: row f has the weights of input f for the C outputs
  float* shift;
  int64_t shift_stride;
  const int64_t *slots, *before;  // (B,) or null, see slot_of and origin_of
  float* y;                       // (B, C)
};

// Both halves of a layer; channel.x is time.y.
struct Block7Step {
  TimeMixing7Step time;
  ChannelMixing7Step channel;
};

}  // namespace rwkv
