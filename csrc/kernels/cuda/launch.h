// How every kernel is launched, and how it declares dynamic shared memory. This allows nvcc to compile a source file
// for the device, and g++ to compile it for the host emulation of tests/cpp/cuda (RWKV_EMULATED).
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

// Excludes an argument from type deduction, so that it is converted to the kernel's parameter type.
template <class T>
struct AsDeclared {
  using type = T;
};

// Launches kernel(arguments...) on the stream, and returns the launch's error, which is cleared for later calls. A grid
// without blocks does nothing and is not an error.
template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   typename AsDeclared<Parameters>::type... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
#ifdef RWKV_EMULATED
  (void)stream;  // an emulated kernel has finished when this returns
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
