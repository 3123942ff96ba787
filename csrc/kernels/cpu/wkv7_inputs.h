// The inputs of RWKV-7's recurrence and the gate, for the tokens of prompts. Torch-free.
#pragma once

#include "kernels/cpu/gates7.h"
#include "kernels/cpu/parallel.h"

namespace rwkv::cpu {

struct Wkv7InputsOp {
  int64_t M, N;  // tokens, channels of a head
  Gates7 gates;
  const float* mixed;  // (6, M, C)
  Rows7 rows;          // (M, A)
};

void wkv7_inputs(const Wkv7InputsOp& op, const Run& run);

}  // namespace rwkv::cpu
