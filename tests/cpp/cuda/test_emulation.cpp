// The emulation itself: right kernels give right results in every order; what is wrong on a device is noticed here.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/cuda/launch.h"

namespace {

using rwkv::cuda::launch;

// Sums of 256 numbers each: within warps by shuffles, across warps through shared memory.
template <class Real>
__global__ void __launch_bounds__(256) sum_kernel(const Real* in, Real* out) {
  __shared__ Real partial[8];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Real sum = in[blockIdx.x * 256 + threadIdx.x];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffff, sum, distance);
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  sum = partial[threadIdx.x % 8];
  for (int distance = 4; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffff, sum, distance, 8);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

template <class Real>
void sums_are_right(const char* order) {
  std::vector<Real> in(3 * 256), out(3);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<Real>(i);
  CHECK(launch(sum_kernel<Real>, 3, 256, 0, nullptr, in.data(), out.data()) == cudaSuccess, order);
  for (int block = 0; block < 3; ++block) CHECK(out[block] == 256 * (256 * block) + 255 * 128, order, block);
}

__global__ void lanes_kernel(int* up, int* broadcast, unsigned* votes) {
  const int lane = threadIdx.x;
  up[lane] = __shfl_up_sync(0xffffffff, lane, 3);
  broadcast[lane] = __shfl_sync(0xffffffff, lane, 5, 16);
  // Halves of a warp apart from each other, one of them later.
  if (lane < 16) {
    votes[lane] = __ballot_sync(0x0000ffff, lane % 2);
  } else {
    __syncwarp(0xffff0000);
    votes[lane] = __ballot_sync(0xffff0000, lane % 3 == 0);
  }
}

void lanes_are_right(const char* order) {
  std::vector<int> up(32), broadcast(32);
  std::vector<unsigned> votes(32);
  CHECK(launch(lanes_kernel, 1, 32, 0, nullptr, up.data(), broadcast.data(), votes.data()) == cudaSuccess);
  for (int lane = 0; lane < 32; ++lane) {
    CHECK(up[lane] == (lane < 3 ? lane : lane - 3), order, lane, up[lane]);
    CHECK(broadcast[lane] == (lane < 16 ? 5 : 21), order, lane, broadcast[lane]);
    CHECK(votes[lane] == (lane < 16 ? 0xaaaau : 0x49240000u), order, lane, votes[lane]);
  }
}

// The mirror image of a row, through dynamic shared memory.
__global__ void mirror_kernel(const float* in, float* out, bool with_barrier) {
  RWKV_DYNAMIC_SHARED(float, row);
  row[threadIdx.x] = in[threadIdx.x];
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = row[blockDim.x - 1 - threadIdx.x];
}

bool mirrors(bool with_barrier) {
  std::vector<float> in(96), out(96);
  for (int i = 0; i < 96; ++i) in[i] = static_cast<float>(i);
  CHECK(launch(mirror_kernel, 2, 96, 96 * sizeof(float), nullptr, in.data(), out.data(), with_barrier) == cudaSuccess);
  for (int i = 0; i < 96; ++i)
    if (out[i] != in[95 - i]) return false;  // NaN where poison was read
  return true;
}

// The leader writes, the others read.
__global__ void leader_kernel(int* out, bool with_barrier) {
  __shared__ int value;
  if (threadIdx.x == 0) value = 7;
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = value;
}

bool leads(bool with_barrier) {
  std::vector<int> out(64);
  CHECK(launch(leader_kernel, 1, 64, 0, nullptr, out.data(), with_barrier) == cudaSuccess);
  return out == std::vector<int>(64, 7);
}

void missing_barriers_show() {
  int mirrored = 0, led = 0;
  emulation::in_every_order([&](const char* order) {
    CHECK(mirrors(true) && leads(true), order);
    mirrored += mirrors(false);
    led += leads(false);
  });
  CHECK(mirrored == 0, mirrored);
  CHECK(led < 5, led);  // the forward order hides it
}

// Only the first block writes; the others must not find its values.
template <class Int>
__global__ void leftovers_kernel(int* out) {
  __shared__ Int fixed[4];
  RWKV_DYNAMIC_SHARED(Int, dynamic);
  if (blockIdx.x == 0) fixed[threadIdx.x] = dynamic[threadIdx.x] = 7;
  out[blockIdx.x * 4 + threadIdx.x] = fixed[threadIdx.x] == 7 || dynamic[threadIdx.x] == 7;
}

void shared_memory_is_poisoned() {
  std::vector<int> out(8);
  CHECK(launch(leftovers_kernel<int>, 2, 4, 4 * sizeof(int), nullptr, out.data()) == cudaSuccess);
  CHECK((out == std::vector<int>{1, 1, 1, 1, 0, 0, 0, 0}));
}

__global__ void half_barrier_kernel() {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void two_places_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void half_warp_kernel() {
  if (threadIdx.x < 16) __syncwarp();
}
__global__ void stranger_kernel(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffff, 1, 20);
}
__global__ void unnamed_kernel(int* out) { out[threadIdx.x] = __shfl_sync(0x0000ffff, 1, 0); }
__global__ void dynamic_kernel() {
  RWKV_DYNAMIC_SHARED(char, bytes);
  bytes[threadIdx.x] = 0;
}
__global__ void read_kernel(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x]; }

template <class... Parameters, class... Arguments>
void fails(const std::string& words, void (*kernel)(Parameters...), int threads, Arguments... arguments) {
  emulation::in_every_order([&](const char* order) {
    std::string message = "no error";
    try {
      (void)launch(kernel, 1, threads, 63, nullptr, arguments...);
    } catch (const emulation::Error& error) {
      message = error.what();
    }
    CHECK(message.find(words) != std::string::npos, order, message, "instead of", words);
    CHECK(mirrors(true));  // and the next launch is not disturbed
  });
}

void misuse_is_an_error() {
  std::vector<int> out(64);
  fails("32 threads have ended, 32 threads wait at the barrier test_emulation.cpp", half_barrier_kernel, 64);
  fails("none can go on", two_places_kernel, 64);
  fails("16 threads wait at the warp barrier", half_warp_kernel, 32);
  fails("which is not there", half_warp_kernel, 16);
  fails("reads lane 20, which the mask does not name", stranger_kernel, 32, out.data());
  fails("the mask does not name the caller", unnamed_kernel, 32, out.data());
  CHECK(launch(dynamic_kernel, 0, 64, 64, nullptr) == cudaSuccess);
  CHECK(launch(dynamic_kernel, 1, 2048, 64, nullptr) == cudaErrorInvalidConfiguration);
  CHECK(launch(dynamic_kernel, 1, 32, 1 << 20, nullptr) == cudaErrorInvalidValue);
}

// What the address sanitizer finds ends the process, here a copy of it.
template <class Function>
bool ends_the_process(const Function& run) {
  const pid_t child = fork();
  if (child == 0) {
    if (freopen("/dev/null", "w", stderr) != nullptr) run();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status != 0;
}

void memory_is_watched() {
  std::vector<float> in(64), out(64);
  for (const int threads : {64, 65}) {
    const bool beyond = threads > 64;
    CHECK(ends_the_process([&] { (void)launch(dynamic_kernel, 1, threads, 64, nullptr); }) == beyond);
    CHECK(ends_the_process([&] { (void)launch(read_kernel, 1, threads, 0, nullptr, in.data(), out.data()); }) ==
          beyond);
  }
}

__global__ void where_kernel(int* out) {
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * 24 + thread] += 1;
}

void every_thread_runs_once(const char* order) {
  std::vector<int> out(30 * 24);
  CHECK(launch(where_kernel, dim3(5, 3, 2), dim3(4, 3, 2), 0, nullptr, out.data()) == cudaSuccess);
  CHECK(out == std::vector<int>(30 * 24, 1), order);
}

}  // namespace

int main() {
  emulation::in_every_order(sums_are_right<float>);
  emulation::in_every_order(sums_are_right<double>);
  emulation::in_every_order(lanes_are_right);
  emulation::in_every_order(every_thread_runs_once);
  missing_barriers_show();
  shared_memory_is_poisoned();
  misuse_is_an_error();
  memory_is_watched();
  return failures();
}
