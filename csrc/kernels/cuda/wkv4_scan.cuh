// Code shared by wkv4 and wkv4_backward: how work is divided among threads, and the states before each chunk of tokens.
//
// A step is linear in the sums (A, B), so the effect of n steps on a state depends only on n and on the steps' own
// sums, which are the state that they reach from an empty past: A <- e^(n w) A + A_steps, and the same for B. Therefore
// there are three passes: the sums of each chunk (in parallel), the state before each chunk (sequentially, with a few
// operations per chunk), and the outputs of each chunk from the state before it (in parallel). A thread processes one
// channel of one chunk, and adjacent threads adjacent channels, so that accesses are coalesced.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/wkv4.h"
#include "kernels/wkv4_step.h"

namespace rwkv::cuda {

constexpr int kWkv4Threads = 64;

inline __host__ __device__ int64_t wkv4_chunks(int64_t T) { return (T + kWkv4Chunk - 1) / kWkv4Chunk; }

// Three arrays of the same shape, (B, C) or (B, chunks, C).
template <class Real>
struct Wkv4States {
  Real *num, *den, *max;

  __device__ Wkv4State<Real> load(int64_t at) const { return {num[at], den[at], max[at]}; }
  __device__ void store(int64_t at, Wkv4State<Real> s) const { num[at] = s.num, den[at] = s.den, max[at] = s.max; }
};

template <class Real>
struct Wkv4ConstStates {
  const Real *num, *den, *max;

  __device__ Wkv4State<Real> load(int64_t at) const { return {__ldg(num + at), __ldg(den + at), __ldg(max + at)}; }
};

// The grid: blockIdx.x counts blocks of channels, then chunks, then sequences, of which blockIdx.y could have 65535
// only. Without chunks, one block processes all tokens.
inline dim3 wkv4_grid(Wkv4Size size, int64_t chunks) {
  const int64_t channel_blocks = (size.C + kWkv4Threads - 1) / kWkv4Threads;
  return dim3(static_cast<unsigned>(channel_blocks * chunks * size.B));
}

// The part of the work of one thread.
struct Wkv4Part {
  int64_t c;      // the channel; a thread after the last one does nothing
  int64_t row;    // the index in (B, C)
  int64_t chunk;  // the index in (B, chunks, C)
  int64_t token;  // the index of the first token in (B, T, C)
  int tokens;
  bool is_first, is_last;  // chunk of the sequence

  // `in_grid`: the number of chunks in the grid, all of them or 1.
  __device__ Wkv4Part(Wkv4Size size, int64_t in_grid) {
    const unsigned channel_blocks = static_cast<unsigned>((size.C + kWkv4Threads - 1) / kWkv4Threads);
    const unsigned piece = blockIdx.x / channel_blocks, pieces = static_cast<unsigned>(in_grid);
    const int64_t chunks = wkv4_chunks(size.T), j = piece % pieces, b = piece / pieces;
    const int64_t left = size.T - j * kWkv4Chunk;
    c = static_cast<int64_t>(blockIdx.x % channel_blocks) * kWkv4Threads + threadIdx.x;
    row = b * size.C + c;
    chunk = (b * chunks + j) * size.C + c;
    token = (b * size.T + j * kWkv4Chunk) * size.C + c;
    tokens = static_cast<int>(left < kWkv4Chunk ? left : kWkv4Chunk);
    is_first = j == 0;
    is_last = j == chunks - 1;
  }
  __device__ explicit Wkv4Part(Wkv4Size size) : Wkv4Part(size, wkv4_chunks(size.T)) {}
};

// The state after `n` steps, from the state before and the steps' own sums. For n = 1 this is wkv4_update.
template <class Real>
__device__ inline Wkv4State<Real> wkv4_append(Real decay, int n, Wkv4State<Real> before, Wkv4State<Real> steps) {
  const Real decayed = before.max + n * decay;
  const Real q = decayed > steps.max ? decayed : steps.max;
  const Real e1 = exp_nonpositive(decayed - q);
  const Real e2 = exp_nonpositive(steps.max - q);
  return {e1 * before.num + e2 * steps.num, e1 * before.den + e2 * steps.den, q};
}

namespace {

template <class Real>
__global__ void wkv4_sums_kernel(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4States<Real> sums) {
  const Wkv4Part part(size);
  if (part.c >= size.C || part.tokens < kWkv4Chunk) return;  // a chunk that is not full is the last one
  const Real decay = in.decay[part.c];
  Wkv4State<Real> s{0, 0, Real(-1e30)};
  int64_t at = part.token;
#pragma unroll 4
  for (int t = 0; t < kWkv4Chunk; ++t, at += size.C) s = wkv4_update(decay, __ldg(in.k + at), __ldg(in.v + at), s);
  sums.store(part.chunk, s);
}

// `end` is the state after the last chunk, written if that chunk is full.
template <class Real>
__global__ void wkv4_starts_kernel(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4ConstStates<Real> sums,
                                   Wkv4States<Real> starts, Wkv4States<Real> end) {
  const Wkv4Part part(size, 1);  // the first chunk; this thread processes all chunks
  if (part.c >= size.C) return;
  const Real decay = in.decay[part.c];
  const int64_t full = size.T / kWkv4Chunk;
  Wkv4State<Real> s{in.num[part.row], in.den[part.row], in.max[part.row]};
  int64_t at = part.chunk;
#pragma unroll 4
  for (int64_t j = 0; j < full; ++j, at += size.C) {
    starts.store(at, s);
    s = wkv4_append(decay, kWkv4Chunk, s, sums.load(at));
  }
  if (full < wkv4_chunks(size.T)) {
    starts.store(at, s);
  } else if (end.num != nullptr) {
    end.store(part.row, s);
  }
}

}  // namespace

// Launches the first two passes, which compute the state before each chunk.
template <class Real>
cudaError_t wkv4_starts(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4States<Real> sums, Wkv4States<Real> starts,
                        Wkv4States<Real> end, cudaStream_t stream) {
  const cudaError_t status =
      launch(wkv4_sums_kernel<Real>, wkv4_grid(size, wkv4_chunks(size.T)), kWkv4Threads, 0, stream, size, in, sums);
  if (status != cudaSuccess) return status;
  return launch(wkv4_starts_kernel<Real>, wkv4_grid(size, 1), kWkv4Threads, 0, stream, size, in,
                Wkv4ConstStates<Real>{sums.num, sums.den, sums.max}, starts, end);
}

}  // namespace rwkv::cuda
