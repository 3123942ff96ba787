// The row of a sequence's state in a pool. Torch-free; host and device.
#pragma once

#include "kernels/math.h"

namespace rwkv {

// The state's row for row b of a batch; without `slots` both have the same order.
RWKV_HOST_DEVICE inline int64_t slot_of(const int64_t* slots, int64_t b) { return slots ? slots[b] : b; }

}  // namespace rwkv
