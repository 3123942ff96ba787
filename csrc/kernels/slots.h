// The row of a sequence's state in a pool. Torch-free; host and device.
#pragma once

#include "kernels/math.h"

namespace rwkv {

// The state's row for row b of a batch; without `slots` both have the same order.
RWKV_HOST_DEVICE inline int64_t slot_of(const int64_t* slots, int64_t b) { return slots ? slots[b] : b; }

// The state's row from which row b of a batch begins: its own, unless there is `before`.
inline int64_t origin_of(const int64_t* before, const int64_t* slots, int64_t b) {
  return before ? before[b] : slot_of(slots, b);
}

// The row of the batch after whose token row b begins: the last one before it that writes the state's row from which it
// begins; -1 if none does. Without `before` none does, although padding rows may share a slot.
inline int64_t predecessor_of(const int64_t* before, const int64_t* slots, int64_t b) {
  int64_t row = before ? b - 1 : -1;
  while (row >= 0 && slots[row] != before[b]) --row;
  return row;
}

}  // namespace rwkv
