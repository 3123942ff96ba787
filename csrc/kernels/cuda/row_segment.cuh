// A lane's part of the rows of an input-major matrix (kernels/matrix.h, kernels/tiles.h). Torch-free; device code.
//
// RowSegment<Weight, outputs> has load(), which reads the weights of one input for this lane's outputs, and widen(),
// which converts them to float32; output() is the index of an output. Segments are numbered along the row.
#pragma once

#include <type_traits>

#include "kernels/cuda/int4.cuh"
#include "kernels/cuda/widen.cuh"
#include "kernels/matrix.h"

namespace rwkv::cuda {

// The number of outputs in 16 bytes of weights.
template <class Weight>
constexpr int kVectorOutputs = 16 / sizeof(Weight);
template <>
constexpr int kVectorOutputs<Int4> = 32;

// Adjacent outputs: those of 16 bytes, or one.
template <class Weight, int outputs>
class RowSegment {
 public:
  // With uint4 the compiler does not split the 16 bytes into weights and pack them again.
  using Words = std::conditional_t<outputs == 1, Weight, uint4>;

  __device__ RowSegment(const Matrix& matrix, int64_t segment)
      : from_(matrix.as<Weight>() + segment * outputs), width_(matrix.N), exists_(segment * outputs < matrix.N) {}

  __device__ bool exists() const { return exists_; }
  __device__ Words load(int64_t input) const { return *reinterpret_cast<const Words*>(from_ + input * width_); }

  __device__ static void widen(const Words& words, float* to) {
    Pack<Weight, outputs> weights;
    memcpy(&weights, &words, sizeof weights);
    cuda::widen(weights, to);
  }
  __device__ static int64_t output(int64_t segment, int i) { return segment * outputs + i; }

 private:
  const Weight* from_;
  int64_t width_;
  bool exists_;
};

// Four lanes of 32 bits of a word of 128 outputs, and the parameters of its two groups. Each lane has every 16th
// output: the first four belong to the first group.
template <int outputs>
class RowSegment<Int4, outputs> {
  static_assert(outputs == kVectorOutputs<Int4>);
  static constexpr int kSegments = kInt4Outputs / outputs;  // in a word

 public:
  struct Words {
    uint2 groups;
    uint4 weights;
  };

  __device__ RowSegment(const Matrix& matrix, int64_t segment) : exists_(output(segment, 0) < matrix.N) {
    const int64_t words = (matrix.N + kInt4Outputs - 1) / kInt4Outputs;
    const int64_t vectors = (8 * words + 63) / 64 * 4;  // of the parameters of a row
    groups_ = static_cast<const uint2*>(matrix.weights) + segment / kSegments;
    weights_ = static_cast<const uint4*>(matrix.weights) + vectors + segment;
    stride_ = vectors + words * kSegments;
  }

  __device__ bool exists() const { return exists_; }
  __device__ Words load(int64_t input) const { return {groups_[input * stride_ * 2], weights_[input * stride_]}; }

  // Writes [4 lanes][4 bytes][2 halves], as the outputs of a lane lie in it.
  __device__ static void widen(const Words& words, float* to) {
    const Int4Group first(words.groups.x), second(words.groups.y);
    const uint32_t lanes[4] = {words.weights.x, words.weights.y, words.weights.z, words.weights.w};
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      float halves[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) int4_bytes(lanes[lane], half, halves[half]);
#pragma unroll
      for (int i = 0; i < 8; ++i) to[lane * 8 + i] = (i < 4 ? first : second).weight(halves[i % 2][i / 2]);
    }
  }
  __device__ static int64_t output(int64_t segment, int i) {
    return segment / kSegments * kInt4Outputs + i % 8 * 16 + segment % kSegments * 4 + i / 8;
  }

 private:
  const uint2* groups_;
  const uint4* weights_;
  int64_t stride_;  // in vectors of 16 bytes
  bool exists_;
};

}  // namespace rwkv::cuda
