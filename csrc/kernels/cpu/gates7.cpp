#include "kernels/cpu/gates7.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/ln_shift.h"
#include "kernels/cpu/tile_product.h"
#include "kernels/math.h"

namespace rwkv::cpu {
namespace {

using Channels = float[kTileRows];

// Copies of a length that the compiler knows are one instruction, and what they wrote can be read at once.
RWKV_INLINE void load(Channels& to, const float* from, int64_t lanes) {
  if (lanes == kTileRows) {
    store_lanes(to, load_lanes(from));
  } else {
    std::fill_n(to, kTileRows, 0.0f);
    std::copy_n(from, lanes, to);
  }
}

RWKV_INLINE void store(float* to, const Channels& from, int64_t lanes) {
  if (lanes == kTileRows)
    store_lanes(to, load_lanes(from));
  else
    std::copy_n(from, lanes, to);
}

}  // namespace

void prepare_activated(const Matrix& second, Activation activation, const float* hidden, int64_t b, int64_t B, float* x,
                       void* prepared) {
  const int64_t rank = second.K;
  if (rank == 0) return;
  std::copy_n(hidden, rank, x);
  if (activation == Activation::tanh)
    for (int64_t i = 0; i < rank; ++i) x[i] = hyperbolic_tangent(x[i]);
  if (activation == Activation::sigmoid)
    for (int64_t i = 0; i < rank; ++i) x[i] = sigmoid(x[i]);
  prepare(second, x, b, B, prepared);
}

void second_products(const LowRanks7& products, char* const* prepared, int64_t first, int64_t blocks, int64_t B,
                     Lanes* sums) {
  for (int i = 0; i < kLowRanks; ++i)
    for (int64_t block = first; block < first + blocks; ++block, sums += B) {
      const Matrix& second = products.of[i].factors.second;
      if (second.K > 0)
        tile_product(second, block, prepared[i], B, sums);
      else
        std::fill_n(sums, B, Lanes{});
    }
}

// The arithmetic is on all lanes of local arrays, so that the compiler vectorises it.
void combine(const Gates7& gates, const Rows7& rows, int64_t b, int64_t n, const Lanes low[kLowRanks]) {
  const int64_t lanes = std::min<int64_t>(kTileRows, gates.A - n), i0 = b * gates.A + n;
  Channels w, a, gate, mix, k, v, first, kappa, w0, a0, v0, k_k, k_a;
  store_lanes(w, low[0]), store_lanes(a, low[1]), store_lanes(gate, low[2]), store_lanes(mix, low[3]);
  load(k, rows.key + i0, lanes), load(v, rows.value + i0, lanes);
  load(w0, gates.w0 + n, lanes), load(a0, gates.a0 + n, lanes);
  load(k_k, gates.k_k + n, lanes), load(k_a, gates.k_a + n, lanes);
  for (int i = 0; i < kTileRows; ++i) {
    w[i] = exp_nonpositive(kDecay7 * sigmoid(w0[i] + w[i]));
    a[i] = sigmoid(a0[i] + a[i]);
    kappa[i] = k[i] * k_k[i];
    k[i] *= 1 + (a[i] - 1) * k_a[i];
  }
  if (gates.mixes_values()) {
    load(first, rows.first + i0, lanes), load(v0, gates.v0 + n, lanes);
    for (int i = 0; i < kTileRows; ++i) v[i] += (first[i] - v[i]) * sigmoid(v0[i] + mix[i]);
  } else {
    store(rows.first + i0, v, lanes);
  }
  store(rows.v + i0, v, lanes);
  store(rows.w + i0, w, lanes), store(rows.a + i0, a, lanes);
  store(rows.k + i0, k, lanes), store(rows.kappa + i0, kappa, lanes);
  store(rows.gate + i0, gate, lanes);
}

void normalise(float* kappa, int64_t N) {
  const double squares = sum_over(N, [=](int64_t i) { return static_cast<double>(kappa[i]) * kappa[i]; });
  const float scale = static_cast<float>(1 / std::max(std::sqrt(squares), 1e-12));
  for (int64_t i = 0; i < N; ++i) kappa[i] *= scale;
}

void gate_head(const float* r, const float* k, const float* v, const float* r_k, LayerNorm norm, const float* gate,
               int64_t N, float* y) {
  layer_norm(y, N, norm, y);
  const float bonus =
      static_cast<float>(sum_over(N, [=](int64_t i) { return static_cast<double>(r[i] * k[i] * r_k[i]); }));
  for (int64_t i = 0; i < N; ++i) y[i] = (y[i] + bonus * v[i]) * gate[i];
}

}  // namespace rwkv::cpu
