// Where a sequence's state lies among the rows of a pool. Torch-free; host and device.
#pragma once

#include "kernels/math.h"

namespace rwkv {

// The state's row of row b of a batch; without `slots` they are in the same order.
RWKV_HOST_DEVICE inline int64_t slot_of(const int64_t* slots, int64_t b) { return slots ? slots[b] : b; }

}  // namespace rwkv
