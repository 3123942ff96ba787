// A matrix of weights, for the kernels of every device. Torch-free.
#pragma once

#include <cstdlib>

#include "kernels/math.h"
#include "kernels/tiles.h"

namespace rwkv {

// The number format of the weights. int8 weights are integers q: W[n, k] = rows[n] q[n, k] columns[k].
// int4 weights are integers with a scale and a minimum for each group: W[n, k] = (s q[n, k] + m) columns[k].
enum class Format : uint8_t { fp32, bf16, fp16, int8, int4 };

// W (N outputs, K inputs), in tiles or as W^T row-major.
struct Matrix {
  Format format;
  const void* weights;
  int64_t N, K;
  const float *rows, *columns;  // (N,), (K,); rows for int8 weights only, columns for int8 and int4

  template <class Weight>
  RWKV_HOST_DEVICE const Weight* as() const {
    return static_cast<const Weight*>(weights);
  }
};

// Returns fn(Weight{}) for the type of the weights. There is no default case, so that the compiler reports every switch
// that lacks a new format; a value that is not a Format ends the process instead of reading garbage.
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
    case Format::int4:
      return fn(Int4{});
  }
  std::abort();
}

}  // namespace rwkv
