#include "kernels/cuda/tiles.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = kTileRows * kTileGroups;

// A block moves one tile, and a thread t moves 4 bytes on each side: in the tile those of row t % 16, group t / 16, in
// the matrix those of row t / 16, group t % 16. Therefore accesses are coalesced on both sides. The threads exchange
// the bytes through shared memory, which is padded to avoid bank conflicts.
template <class Weight>
struct Exchange {
  static constexpr int P = kGroupInputs<Weight>;
  using Word = Pack<Weight, P>;
  using Words = Word[kTileGroups][kTileRows + 1];

  int group = thread() / kTileRows, row = thread() % kTileRows;  // in tiles
  int64_t n, k;                                                  // in the matrix
  int inputs;                                                    // the number of the word's inputs that are not padding

  __device__ Exchange(int64_t N, int64_t K) {
    const int64_t per_block = (K + kTileInputs<Weight> - 1) / kTileInputs<Weight>;
    n = blockIdx.x / per_block * kTileRows + group;
    k = blockIdx.x % per_block * kTileInputs<Weight> + row * P;
    const int64_t left = n < N ? K - k : 0;
    inputs = static_cast<int>(left < 0 ? 0 : left < P ? left : P);
  }
};

template <class Weight>
__global__ void __launch_bounds__(kThreads) tile_kernel(const Weight* matrix, int64_t N, int64_t K, Weight* tiles) {
  using Words = typename Exchange<Weight>::Words;
  using Word = typename Exchange<Weight>::Word;
  __shared__ Words words;
  const Exchange<Weight> at(N, K);
  Word word = {};
  for (int p = 0; p < at.inputs; ++p) word.at[p] = matrix[at.n * K + at.k + p];
  words[at.row][at.group] = word;
  __syncthreads();
  reinterpret_cast<Word*>(tiles)[static_cast<int64_t>(blockIdx.x) * kThreads + thread()] = words[at.group][at.row];
}

template <class Weight>
__global__ void __launch_bounds__(kThreads) untile_kernel(Alike<Weight> all, int64_t N, int64_t K, Weight* matrices) {
  using Words = typename Exchange<Weight>::Words;
  using Word = typename Exchange<Weight>::Word;
  __shared__ Words words;
  const Exchange<Weight> at(N, K);
  const Weight* const tiles = all.tiles[blockIdx.y];
  words[at.group][at.row] =
      reinterpret_cast<const Word*>(tiles)[static_cast<int64_t>(blockIdx.x) * kThreads + thread()];
  __syncthreads();
  const Word word = words[at.row][at.group];
  Weight* const to = matrices + (blockIdx.y * N + at.n) * K + at.k;
  if (K % Exchange<Weight>::P == 0) {  // then the inputs of a word are contiguous
    if (at.inputs) *reinterpret_cast<Word*>(to) = word;
  } else {
    for (int p = 0; p < at.inputs; ++p) to[p] = word.at[p];
  }
}

template <class Weight>
dim3 one_block_per_tile(int64_t N, int64_t K, int matrices = 1) {
  return grid_of(tile_blocks(N) * tiles_per_block<Weight>(K), matrices);
}

}  // namespace

template <class Weight>
cudaError_t tile(const Weight* matrix, int64_t N, int64_t K, Weight* tiles, cudaStream_t stream) {
  return launch(&tile_kernel<Weight>, one_block_per_tile<Weight>(N, K), kThreads, 0, stream, matrix, N, K, tiles);
}

template <class Weight>
cudaError_t untile_alike(const Alike<Weight>& all, int64_t N, int64_t K, Weight* matrices, cudaStream_t stream) {
  return launch(&untile_kernel<Weight>, one_block_per_tile<Weight>(N, K, all.count), kThreads, 0, stream, all, N, K,
                matrices);
}

template <class Weight>
cudaError_t untile(const Weight* tiles, int64_t N, int64_t K, Weight* matrix, cudaStream_t stream) {
  return untile_alike(Alike<Weight>{{tiles}, 1}, N, K, matrix, stream);
}

template cudaError_t tile(const float*, int64_t, int64_t, float*, cudaStream_t);
template cudaError_t tile(const Bfloat16*, int64_t, int64_t, Bfloat16*, cudaStream_t);
template cudaError_t tile(const Float16*, int64_t, int64_t, Float16*, cudaStream_t);
template cudaError_t tile(const int8_t*, int64_t, int64_t, int8_t*, cudaStream_t);
template cudaError_t untile_alike(const Alike<float>&, int64_t, int64_t, float*, cudaStream_t);
template cudaError_t untile_alike(const Alike<Bfloat16>&, int64_t, int64_t, Bfloat16*, cudaStream_t);
template cudaError_t untile_alike(const Alike<Float16>&, int64_t, int64_t, Float16*, cudaStream_t);
template cudaError_t untile_alike(const Alike<int8_t>&, int64_t, int64_t, int8_t*, cudaStream_t);
template cudaError_t untile(const float*, int64_t, int64_t, float*, cudaStream_t);
template cudaError_t untile(const Bfloat16*, int64_t, int64_t, Bfloat16*, cudaStream_t);
template cudaError_t untile(const Float16*, int64_t, int64_t, Float16*, cudaStream_t);
template cudaError_t untile(const int8_t*, int64_t, int64_t, int8_t*, cudaStream_t);

}  // namespace rwkv::cuda
