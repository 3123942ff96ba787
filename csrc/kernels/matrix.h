// A matrix of weights, as kernels of every device take it. Torch-free.
#pragma once

#include <cstdlib>

#include "kernels/math.h"
#include "kernels/tiles.h"

namespace rwkv {

// How weights are stored. int8 ones are whole numbers q: W[n, k] = rows[n] q[n, k] columns[k].
enum class Format : uint8_t { fp32, bf16, fp16, int8 };

// W (N outputs, K inputs), in tiles or as W^T row after row.
struct Matrix {
  Format format;
  const void* weights;
  int64_t N, K;
  const float *rows, *columns;  // (N,), (K,); of int8 only

  template <class Weight>
  RWKV_HOST_DEVICE const Weight* as() const {
    return static_cast<const Weight*>(weights);
  }
};

// Returns fn(Weight{}) for the type of the weights. There is no default case, so that the compiler names every switch
// that a new format is missing from; a value that is not a Format ends the process instead of reading garbage.
template <class Function>
auto for_format(Format format, const Function& fn) {
  switch (format) {
    case Format::fp32:
      return fn(float{});
    case Format::bf16:
      return fn(Bfloat16{});
    case Format::fp16:
      return fn(Float16{});
    case Format::int8:
      return fn(int8_t{});
  }
  std::abort();
}

}  // namespace rwkv
