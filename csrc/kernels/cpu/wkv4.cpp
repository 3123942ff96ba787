#include "kernels/cpu/wkv4.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/lanes.h"
#include "kernels/wkv4_step.h"

namespace rwkv::cpu {
namespace {

// Channels are independent. A block of them is one unit of work, and the inner loops over a block are vectorised.
constexpr int kLanes = kTileRows;
constexpr int64_t kStepWork = 32;  // one channel and token, in multiply-adds of a matrix product

int64_t block_count(int64_t C) { return (C + kLanes - 1) / kLanes; }

template <class Real>
struct BlockState {
  Real num[kLanes], den[kLanes], max[kLanes];
};

template <class Real>
RWKV_INLINE BlockState<Real> load(const Real* num, const Real* den, const Real* max, int lanes) {
  BlockState<Real> s{};
  for (int i = 0; i < lanes; ++i) s.num[i] = num[i], s.den[i] = den[i], s.max[i] = max[i];
  return s;
}

template <class Real>
RWKV_INLINE void store(const BlockState<Real>& s, Real* num, Real* den, Real* max, int lanes) {
  for (int i = 0; i < lanes; ++i) num[i] = s.num[i], den[i] = s.den[i], max[i] = s.max[i];
}

template <class Real>
RWKV_INLINE void update(const Real* decay, const Real* __restrict k, const Real* __restrict v,
                        BlockState<Real>& __restrict s, int lanes) {
#pragma omp simd
  for (int i = 0; i < lanes; ++i) {
    const auto next = wkv4_update<Real>(decay[i], k[i], v[i], {s.num[i], s.den[i], s.max[i]});
    s.num[i] = next.num, s.den[i] = next.den, s.max[i] = next.max;
  }
}

template <class Real>
RWKV_INLINE void output(const Real* first, const Real* __restrict k, const Real* __restrict v,
                        const BlockState<Real>& s, Real* __restrict y, int lanes) {
#pragma omp simd
  for (int i = 0; i < lanes; ++i) y[i] = wkv4_output<Real>(first[i], k[i], v[i], {s.num[i], s.den[i], s.max[i]});
}

template <class Real>
struct BlockVectorGrads {
  Real decay[kLanes], first[kLanes];
};

template <class Real>
RWKV_INLINE void step_backward(const Real* decay, const Real* first, const Real* __restrict k, const Real* __restrict v,
                               const BlockState<Real>& __restrict s, const Real* __restrict grad_y,
                               BlockState<Real>& __restrict grad, BlockVectorGrads<Real>& __restrict sums,
                               Real* __restrict grad_k, Real* __restrict grad_v, int lanes) {
#pragma omp simd
  for (int i = 0; i < lanes; ++i) {
    const auto g = wkv4_step_backward<Real>(decay[i], first[i], k[i], v[i], {s.num[i], s.den[i], s.max[i]}, grad_y[i],
                                            {grad.num[i], grad.den[i], grad.max[i]});
    grad_k[i] = g.k, grad_v[i] = g.v;
    sums.decay[i] += g.decay, sums.first[i] += g.first;
    grad.num[i] = g.state.num, grad.den[i] = g.state.den, grad.max[i] = g.state.max;
  }
}

// Forward pass of one sequence and one block of channels, which begins at c.
template <class Real>
RWKV_INLINE void forward_block(Wkv4Size size, const Wkv4Inputs<Real>& in, const Wkv4Outputs<Real>& out, int64_t b,
                               int64_t c, int lanes) {
  const auto [B, T, C] = size;
  const int64_t row = b * C + c;
  BlockState<Real> state = load(in.num + row, in.den + row, in.max + row, lanes);
  for (int64_t t = 0; t < T; ++t) {
    const int64_t at = (b * T + t) * C + c;
    output(in.first + c, in.k + at, in.v + at, state, out.y + at, lanes);
    update(in.decay + c, in.k + at, in.v + at, state, lanes);
  }
  store(state, out.num + row, out.den + row, out.max + row, lanes);
}

// Backward pass of all sequences and one block of channels. The gradients of decay and first are sums over B in a fixed
// order. `before` has T states, recomputed: the one before each step.
template <class Real>
RWKV_INLINE void backward_block(Wkv4Size size, const Wkv4Inputs<Real>& in, const Wkv4OutputGrads<Real>& grad,
                                const Wkv4InputGrads<Real>& out, BlockState<Real>* before, int64_t c, int lanes) {
  const auto [B, T, C] = size;
  BlockVectorGrads<Real> sums{};
  for (int64_t b = 0; b < B; ++b) {
    const int64_t row = b * C + c;
    BlockState<Real> state = load(in.num + row, in.den + row, in.max + row, lanes);
    for (int64_t t = 0; t < T; ++t) {
      const int64_t at = (b * T + t) * C + c;
      before[t] = state;
      update(in.decay + c, in.k + at, in.v + at, state, lanes);
    }
    BlockState<Real> grad_state = load(grad.num + row, grad.den + row, grad.max + row, lanes);
    for (int64_t t = T - 1; t >= 0; --t) {
      const int64_t at = (b * T + t) * C + c;
      step_backward(in.decay + c, in.first + c, in.k + at, in.v + at, before[t], grad.y + at, grad_state, sums,
                    out.k + at, out.v + at, lanes);
    }
    store(grad_state, out.num + row, out.den + row, out.max + row, lanes);
  }
  std::copy_n(sums.decay, lanes, out.decay + c);
  std::copy_n(sums.first, lanes, out.first + c);
}

}  // namespace

template <class Real>
void wkv4(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4Outputs<Real> out, const Run& run) {
  const int64_t blocks = block_count(size.C);
  run(size.B * blocks, kStepWork * kLanes * size.T, [=](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / blocks, c = unit % blocks * kLanes;
      if (c + kLanes <= size.C) {
        forward_block(size, in, out, b, c, kLanes);
      } else {
        forward_block(size, in, out, b, c, static_cast<int>(size.C - c));
      }
    }
  });
}

template <class Real>
void wkv4_backward(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4OutputGrads<Real> grad, Wkv4InputGrads<Real> out,
                   const Run& run) {
  run(block_count(size.C), 2 * kStepWork * kLanes * size.B * size.T, [=](int64_t begin, int64_t end) {
    std::vector<BlockState<Real>> before(size.T);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t c = unit * kLanes;
      if (c + kLanes <= size.C) {
        backward_block(size, in, grad, out, before.data(), c, kLanes);
      } else {
        backward_block(size, in, grad, out, before.data(), c, static_cast<int>(size.C - c));
      }
    }
  });
}

template void wkv4(Wkv4Size, Wkv4Inputs<float>, Wkv4Outputs<float>, const Run&);
template void wkv4(Wkv4Size, Wkv4Inputs<double>, Wkv4Outputs<double>, const Run&);
template void wkv4_backward(Wkv4Size, Wkv4Inputs<float>, Wkv4OutputGrads<float>, Wkv4InputGrads<float>, const Run&);
template void wkv4_backward(Wkv4Size, Wkv4Inputs<double>, Wkv4OutputGrads<double>, Wkv4InputGrads<double>, const Run&);

}  // namespace rwkv::cpu
