// Products of 16 x 16 matrices by the tensor cores, nvcuda::wmma. A lane must not rely on where a fragment's elements
// are; host emulation has its own.
#pragma once

#include "kernels/cuda/launch.h"

#ifdef RWKV_EMULATED
#include "emulated_matrices.h"
#else
#include <mma.h>
#endif
