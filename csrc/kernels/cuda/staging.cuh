// How a block prepares the inputs of a product in shared memory, with many loads in flight. Torch-free; device code.
//
// A loop that loads, waits and stores one element at a time, or whose loads depend on a branch, has as many loads in
// flight as an element has. Here a thread loads `ahead` elements before it uses the first, and the places of elements
// that do not exist are moved to ones that do, so that no load depends on a branch.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/warp.cuh"
#include "kernels/tiles.h"

namespace rwkv::cuda {

// Element i of [rows][chunk], that is input `first` + i % chunk of row i / chunk, of `rows` rows with K inputs. Its
// place (b, c) is within these even if it does not exist.
template <int chunk>
struct Staged {
  int b;
  int64_t c;
  bool exists;

  __device__ Staged(int i, int64_t first, int rows, int64_t K) {
    const int row = i / chunk;
    const int64_t input = first + i % chunk;
    exists = row < rows && input < K;
    b = row < rows ? row : rows - 1;
    c = input < K ? input : K - 1;
  }
};

// The number of elements of so many numbers that a thread loads ahead: about 20 loads in flight, and fewer with 4 rows,
// whose sums take the registers that kResident leaves.
template <class Weight, int batch, int numbers>
constexpr int kAheadOf = std::clamp((batch != 4                     ? 21
                                     : std::is_same_v<Weight, Int4> ? 7
                                                                    : 14) /
                                        numbers,
                                    1, 8);

// Calls use(i, load(i)) for all i from 0 to n - 1, each by one thread; `load` runs for `ahead` of them first. It may
// also run for the last i in other threads.
template <int n, int threads, int ahead, class Load, class Use>
__device__ void load_ahead(const Load& load, const Use& use) {
  constexpr bool kAllExist = n % (threads * ahead) == 0;
#pragma unroll 1
  for (int first = thread(); first < n; first += threads * ahead) {
    decltype(load(0)) loaded[ahead];
#pragma unroll
    for (int j = 0; j < ahead; ++j) {
      const int i = first + j * threads;
      loaded[j] = load(kAllExist || i < n ? i : n - 1);
    }
#pragma unroll
    for (int j = 0; j < ahead; ++j) {
      const int i = first + j * threads;
      if (kAllExist || i < n) use(i, loaded[j]);
    }
  }
}

}  // namespace rwkv::cuda
