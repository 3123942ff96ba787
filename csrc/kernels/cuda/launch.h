// The one way a kernel is launched, and the one way it declares dynamic shared memory: the same source file then goes
// through nvcc for the device and through g++ for the host emulation of tests/cpp/cuda (RWKV_EMULATED).
#pragma once

#ifdef RWKV_EMULATED
#include "emulation.h"
#else
#include <cuda_runtime.h>
#endif

#include <cstddef>

namespace rwkv::cuda {

// Declares `Type* const name`, the block's dynamic shared memory, aligned to 16 bytes.
#ifdef RWKV_EMULATED
#define RWKV_DYNAMIC_SHARED(Type, name) Type* const name = static_cast<Type*>(::emulation::dynamic_shared())
#else
#define RWKV_DYNAMIC_SHARED(Type, name)                                \
  extern __shared__ __align__(16) unsigned char rwkv_dynamic_shared[]; \
  Type* const name = reinterpret_cast<Type*>(rwkv_dynamic_shared)
#endif

// Keeps an argument from taking part in deduction: arguments convert to what the kernel declares.
template <class T>
struct AsDeclared {
  using type = T;
};

// Launches kernel(arguments...) on the stream and returns whether that was accepted; an error leaves nothing behind for
// later calls to stumble on. A grid without blocks is no work and no error.
template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   typename AsDeclared<Parameters>::type... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
#ifdef RWKV_EMULATED
  (void)stream;  // launches are done when they return
  return emulation::launch(grid, block, shared_bytes, [&] { kernel(arguments...); });
#else
  constexpr size_t kWithoutAsking = 48 * 1024;
  cudaError_t status = cudaSuccess;
  if (shared_bytes > kWithoutAsking)
    status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared_bytes));
  if (status == cudaSuccess) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    status = cudaLaunchKernelEx(&config, kernel, arguments...);
  }
  if (status != cudaSuccess) cudaGetLastError();
  return status;
#endif
}

}  // namespace rwkv::cuda
