// Runs CUDA kernels on the host: g++ compiles the very .cu file nvcc compiles, over the real CUDA headers, and every
// thread of a block becomes a fiber. For tests of arithmetic, indexing and synchronisation on machines without a GPU.
//
// What kernels may use (csrc/kernels/cuda/launch.h is included first, everything is launched through it):
//   threadIdx blockIdx blockDim gridDim warpSize
//   __shared__ T name[N] with types that need no constructor; RWKV_DYNAMIC_SHARED(T, name)
//   __syncthreads  __syncwarp  __shfl_sync  __shfl_xor_sync  __shfl_up_sync  __shfl_down_sync
//   __ballot_sync  __any_sync  __all_sync  __threadfence  __threadfence_block
//   atomicAdd of int, unsigned and unsigned long long (a float's sum would depend on the order)
//   __ldg __ldcs __ldcg  __byte_perm __popc __ffs __clz  __float_as_uint __uint_as_float and the like  __expf rsqrtf
//   min max cuda_fp16.h and cuda_bf16.h as far as the host has them: conversions and packed types, and their operators
//   nvcuda::wmma as far as emulated_matrices.h has it
// Not: cooperative groups, __activemask, inline assembly, asynchronous copies, clusters, and blocks that wait for one
// another (they run one after another).
//
// Stricter than the hardware, so that what passes here is sure there: a barrier must be reached by all threads of the
// block, at one place in the source; a warp operation by all lanes its mask names, which must exist; and a lane may
// only be read if the mask names it. Anything else is an Error, with a message and not a hang. Shared memory is
// poisoned (0xff bytes: NaN, -1) before each block. The address sanitizer watches global and dynamic shared memory, so
// tests allocate exactly what a kernel may touch. A thread runs until it has to wait, and in two of the orders a warp
// runs until it has to wait for another, so a missing barrier shows in one order of threads or another: run every test
// with in_every_order.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <type_traits>

// One per block, as blocks run one after another in one host thread; thread_local, as that puts all of them, also those
// of templates, into one range of addresses which can be poisoned.
#undef __shared__
#define __shared__ static thread_local
#define __launch_bounds__(...)

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Order { Forward, Reverse, Shuffled };

// The order in which threads and blocks get to run, from now on.
void set_order(Order order, unsigned seed = 0);

// Calls test(name of the order) once for each order, three times with different shuffles.
void in_every_order(const std::function<void(const char*)>& test);

cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);
void* dynamic_shared();

using Place = std::source_location;
constexpr unsigned kFullMask = 0xffffffffu;

void barrier(Place place);
void warp_barrier(unsigned mask, Place place);
uint64_t warp_exchange(unsigned mask, uint64_t value, unsigned lane, Place place);  // `lane`'s value
unsigned warp_ballot(unsigned mask, bool vote, Place place);
unsigned lane_id();

template <class T>
T exchange(unsigned mask, T value, unsigned lane, Place place) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shuffles move 4 or 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, static_cast<const void*>(&value), sizeof value);
  bits = warp_exchange(mask, bits, lane, place);
  memcpy(static_cast<void*>(&value), &bits, sizeof value);
  return value;
}

template <class To, class From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &value, sizeof to);
  return to;
}

}  // namespace emulation

// The names CUDA gives to device code. A source_location as last argument is where the kernel called from.

inline void __syncthreads(emulation::Place place = emulation::Place::current()) { emulation::barrier(place); }
inline void __syncwarp(unsigned mask = emulation::kFullMask, emulation::Place place = emulation::Place::current()) {
  emulation::warp_barrier(mask, place);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// The lane to read lies in the caller's segment of `width` lanes; up, down and xor past it yield the caller's own
// value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              emulation::Place place = emulation::Place::current()) {
  const unsigned lane = emulation::lane_id(), segment = lane & ~(width - 1u);
  return emulation::exchange(mask, value, segment | (source & (width - 1u)), place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  emulation::Place place = emulation::Place::current()) {
  const unsigned lane = emulation::lane_id(), other = lane ^ static_cast<unsigned>(bits);
  return emulation::exchange(mask, value, other < (lane | (width - 1u)) + 1 ? other : lane, place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 emulation::Place place = emulation::Place::current()) {
  const unsigned lane = emulation::lane_id(), within = lane & (width - 1u);
  return emulation::exchange(mask, value, within >= delta ? lane - delta : lane, place);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   emulation::Place place = emulation::Place::current()) {
  const unsigned lane = emulation::lane_id(), within = lane & (width - 1u);
  return emulation::exchange(mask, value, within + delta < static_cast<unsigned>(width) ? lane + delta : lane, place);
}
inline unsigned __ballot_sync(unsigned mask, int vote, emulation::Place place = emulation::Place::current()) {
  return emulation::warp_ballot(mask, vote != 0, place);
}
inline int __any_sync(unsigned mask, int vote, emulation::Place place = emulation::Place::current()) {
  return emulation::warp_ballot(mask, vote != 0, place) != 0;
}
inline int __all_sync(unsigned mask, int vote, emulation::Place place = emulation::Place::current()) {
  return emulation::warp_ballot(mask, vote != 0, place) == mask;
}

template <class T>
T atomicAdd(T* at, T value) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>);
  const T before = *at;
  *at += value;
  return before;
}

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}

// Byte i of the result is the one that the i-th hexadecimal digit of the selector names: 0 to 3 of x, 4 to 7 of y.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= (bytes >> 8 * (selector >> 4 * i & 7u) & 0xffu) << 8 * i;
  return result;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __float_as_uint(float x) { return emulation::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return emulation::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return emulation::bits_as<float>(x); }
inline float __int_as_float(int x) { return emulation::bits_as<float>(x); }
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
