// A block computes 64 rows of x times 64 outputs, 64 inputs at a time. While its warps multiply what is in shared
// memory, the next weights and activations are on their way to registers; weights are converted between the two. Blocks
// with the same outputs are neighbours, so that all but one read their weights from a cache.
#include "kernels/cuda/quantised_product.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/narrow.cuh"
#include "kernels/cuda/tile_reading.cuh"
#include "kernels/cuda/warp_matrices.h"

namespace rwkv::cuda {
namespace {

namespace wmma = nvcuda::wmma;

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kSide = kWarps * kTileRows;  // rows and outputs of a block; each warp converts a block of tiles
constexpr int kInputs = 64;
constexpr int kStride = kInputs + 8;  // 16 bytes of padding, so that eight rows are in different banks
constexpr int kFragment = 16;
constexpr int kVectorInputs = 8;                                      // float16 in 16 bytes
constexpr int kVectors = kSide * kInputs / kVectorInputs / kThreads;  // of activations, per thread

struct Shared {
  alignas(32) Float16 x[kSide * kStride];
  alignas(32) Float16 weights[kSide * kStride];
  alignas(32) float sums[kWarps][kFragment * kFragment];
};

__device__ inline const __half* halves(const Float16* numbers) { return reinterpret_cast<const __half*>(numbers); }

// This thread's part of the next inputs, on its way from global memory.
template <class Weight>
class Next {
  using Read = Reading<Weight>;
  static constexpr int kLaneInputs = Read::kParts * Read::kPart;
  static constexpr int kReadInputs = kWarpGroups * kLaneInputs;
  static constexpr int kReads = kInputs / kReadInputs;
  using Vector = Pack<Float16, kVectorInputs>;

 public:
  __device__ Next(const Float16* x, const Matrix& matrix, int64_t M) : x_(x), M_(M), K_(matrix.K) {
    const int64_t block = static_cast<int64_t>(blockIdx.y) * kWarps + warp();
    const int64_t tiles = (K_ + kTileInputs<Weight> - 1) / kTileInputs<Weight>;
    exists_ = block * kTileRows < matrix.N;
    tiles_ = static_cast<const uint4*>(matrix.weights) + block * tiles * kTileVectors<Weight> + Read::first();
  }

  // Starts to load the inputs from `first` on. All threads of a warp take the same branch for weights.
  __device__ void load(int64_t first) {
#pragma unroll
    for (int i = 0; i < kReads; ++i) {
      reads_[i] = {};
      if (exists_) reads_[i].load(tiles_ + (first / kReadInputs + i) * Read::kVectors);
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const auto [row, input] = place(i);
      const int64_t m = static_cast<int64_t>(blockIdx.x) * kSide + row, k = first + input;
      rows_[i] = {};
      if (m < M_ && k < K_) rows_[i] = *reinterpret_cast<const Vector*>(x_ + m * K_ + k);
    }
  }

  __device__ void store(Shared& shared) const {
#pragma unroll
    for (int i = 0; i < kReads; ++i)
#pragma unroll
      for (int part = 0; part < Read::kParts; ++part) {
        float w[kLaneRows * Read::kPart];
        reads_[i].widen(part, w);
        const int row = warp() * kTileRows + lane() % kRowLanes * kLaneRows;
        const int input = i * kReadInputs + lane() / kRowLanes * kLaneInputs + part * Read::kPart;
#pragma unroll
        for (int r = 0; r < kLaneRows; ++r) {
          Pack<Float16, Read::kPart> halves;
#pragma unroll
          for (int p = 0; p < Read::kPart; ++p) halves.at[p] = narrow<Float16>(w[r * Read::kPart + p]);
          *reinterpret_cast<Pack<Float16, Read::kPart>*>(&shared.weights[(row + r) * kStride + input]) = halves;
        }
      }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const auto [row, input] = place(i);
      *reinterpret_cast<Vector*>(&shared.x[row * kStride + input]) = rows_[i];
    }
  }

 private:
  struct Place {
    int row, input;
  };
  __device__ static Place place(int i) {
    constexpr int kPerRow = kInputs / kVectorInputs;
    const int vector = thread() + i * kThreads;
    return {vector / kPerRow, vector % kPerRow * kVectorInputs};
  }

  const uint4* tiles_;
  const Float16* x_;
  int64_t M_, K_;
  bool exists_;
  Read reads_[kReads];
  Vector rows_[kVectors];
};

template <class Weight>
__global__ void __launch_bounds__(kThreads)
    quantised_product_kernel(const Float16* x, const float* powers, Matrix matrix, int64_t M, float* y) {
  constexpr int kOwn = 2;  // a warp has 2 x 2 fragments of the sums
  __shared__ Shared shared;
  const int own_m = warp() / 2 * kOwn * kFragment, own_n = warp() % 2 * kOwn * kFragment;
  wmma::fragment<wmma::accumulator, kFragment, kFragment, kFragment, float> sums[kOwn][kOwn];
#pragma unroll
  for (int i = 0; i < kOwn * kOwn; ++i) wmma::fill_fragment(sums[i / kOwn][i % kOwn], 0.0f);

  Next<Weight> next(x, matrix, M);
  next.load(0);
  for (int64_t first = 0; first < matrix.K; first += kInputs) {
    if (first) __syncthreads();
    next.store(shared);
    __syncthreads();
    if (first + kInputs < matrix.K) next.load(first + kInputs);
#pragma unroll
    for (int k = 0; k < kInputs; k += kFragment) {
      wmma::fragment<wmma::matrix_a, kFragment, kFragment, kFragment, __half, wmma::row_major> a[kOwn];
      wmma::fragment<wmma::matrix_b, kFragment, kFragment, kFragment, __half, wmma::col_major> b[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        wmma::load_matrix_sync(a[i], halves(shared.x + (own_m + i * kFragment) * kStride + k), kStride);
        wmma::load_matrix_sync(b[i], halves(shared.weights + (own_n + i * kFragment) * kStride + k), kStride);
      }
#pragma unroll
      for (int i = 0; i < kOwn * kOwn; ++i)
        wmma::mma_sync(sums[i / kOwn][i % kOwn], a[i / kOwn], b[i % kOwn], sums[i / kOwn][i % kOwn]);
    }
  }

  float* const mine = shared.sums[warp()];
#pragma unroll
  for (int i = 0; i < kOwn * kOwn; ++i) {
    if (i) __syncwarp();
    wmma::store_matrix_sync(mine, sums[i / kOwn][i % kOwn], kFragment, wmma::mem_row_major);
    __syncwarp();
    const int64_t m0 = static_cast<int64_t>(blockIdx.x) * kSide + own_m + i / kOwn * kFragment,
                  n0 = static_cast<int64_t>(blockIdx.y) * kSide + own_n + i % kOwn * kFragment;
    for (int e = lane(); e < kFragment * kFragment; e += kWarp) {
      const int64_t m = m0 + e / kFragment, n = n0 + e % kFragment;
      if (m < M && n < matrix.N) y[m * matrix.N + n] = times_row<Weight>(mine[e], matrix.rows, n) * powers[m];
    }
  }
}

}  // namespace

cudaError_t quantised_product(const Float16* x, const float* powers, const Matrix& matrix, int64_t M, float* y,
                              cudaStream_t stream) {
  const auto with = [&](auto kernel) {
    return launch(kernel, grid_of(pieces(M, kSide), pieces(matrix.N, kSide)), kThreads, 0, stream, x, powers, matrix, M,
                  y);
  };
  return matrix.format == Format::int4 ? with(&quantised_product_kernel<Int4>)
                                       : with(&quantised_product_kernel<int8_t>);
}

}  // namespace rwkv::cuda
