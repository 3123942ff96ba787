#include "kernels/cpu/time_mixing7_step.h"

#include <algorithm>

#include "kernels/cpu/residual_product.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/step_inputs.h"
#include "kernels/cpu/wkv7_row.h"
#include "kernels/math.h"

namespace rwkv::cpu {
namespace {

// A product of a mix, in its order of execution.
struct Product {
  const Matrix& matrix;
  Mix7 mix;
  char* in;    // prepared
  float* out;  // (B, N)
};
constexpr int kProducts = 7, kLowRanks = 4;

// A second factor, the activation of its input, and the output of the first factor.
enum class Activation { none, tanh, sigmoid };
struct Factor {
  const Matrix& matrix;
  Activation activation;
  const float* hidden;  // (B, rank)
  char* in;             // prepared
};

struct Pieces {
  float* now;                                                // (B, C)
  float *r, *w, *k, *v, *kappa, *a, *gate, *gated;           // (B, A)
  float *hidden_w, *hidden_a, *hidden_g, *hidden_v;          // (B, rank)
  char *in_r, *in_k, *in_v, *in_w1, *in_a1, *in_g1, *in_v1;  // prepared
  char *in_w2, *in_a2, *in_g2, *in_v2, *out;                 // prepared
  int64_t size;

  Pieces(const TimeMixing7Step& step, void* allocation) {
    Scratch scratch(allocation);
    const int64_t B = step.B;
    now = scratch.take<float>(B * step.C);
    for (float** to : {&r, &w, &k, &v, &kappa, &a, &gate, &gated}) *to = scratch.take<float>(B * step.A());
    const auto prepared = [&](const Matrix& matrix) { return scratch.take<char>(B * prepared_size(matrix)); };
    const auto low_rank = [&](const LowRank& factors, float*& hidden, char*& first, char*& second) {
      hidden = scratch.take<float>(B * factors.first.N);
      first = prepared(factors.first), second = prepared(factors.second);
    };
    low_rank(step.w, hidden_w, in_w1, in_w2), low_rank(step.a, hidden_a, in_a1, in_a2);
    low_rank(step.g, hidden_g, in_g1, in_g2), low_rank(step.v, hidden_v, in_v1, in_v2);
    in_r = prepared(step.receptance), in_k = prepared(step.key), in_v = prepared(step.value);
    out = prepared(step.output);
    size = scratch.used();
  }

  std::array<Product, kProducts> products(const TimeMixing7Step& step) const {
    return {{{step.receptance, Mix7::r, in_r, r},
             {step.key, Mix7::k, in_k, k},
             {step.value, Mix7::v, in_v, v},
             {step.w.first, Mix7::w, in_w1, hidden_w},
             {step.a.first, Mix7::a, in_a1, hidden_a},
             {step.g.first, Mix7::g, in_g1, hidden_g},
             {step.v.first, Mix7::v, in_v1, hidden_v}}};
  }
  std::array<Factor, kLowRanks> factors(const TimeMixing7Step& step) const {
    return {{{step.w.second, Activation::tanh, hidden_w, in_w2},
             {step.a.second, Activation::none, hidden_a, in_a2},
             {step.g.second, Activation::sigmoid, hidden_g, in_g2},
             {step.v.second, Activation::none, hidden_v, in_v2}}};
  }
};

// All products of the mixes in one loop, one matrix after the other: several streams of weights at a time are read more
// slowly than one.
void multiply(const std::array<Product, kProducts>& products, int64_t B, int64_t C, const Run& run) {
  int64_t blocks = 0;
  for (const Product& product : products) blocks += tile_blocks(product.matrix.N);
  run(blocks, B * C * kTileRows, [=, &products](int64_t begin, int64_t end) {
    const auto [sums] = thread_buffers<Lanes>(B);
    int64_t before = 0;  // blocks of the products before this one
    for (const auto& [matrix, mix, in, out] : products) {
      const int64_t N = matrix.N, own = tile_blocks(N);
      for (int64_t unit = std::max(begin, before); unit < std::min(end, before + own); ++unit) {
        const int64_t n = (unit - before) * kTileRows, lanes = std::min<int64_t>(kTileRows, N - n);
        tile_product(matrix, unit - before, in, B, sums);
        for (int64_t b = 0; b < B; ++b) std::copy_n(reinterpret_cast<const float*>(sums + b), lanes, out + b * N + n);
      }
      before += own;
    }
  });
}

// The inputs of the second factors: ranks are small, so a row is one unit of work.
void activate(const std::array<Factor, kLowRanks>& factors, int64_t B, const Run& run) {
  int64_t ranks = 0, most = 0;
  for (const Factor& factor : factors) ranks += factor.matrix.K, most = std::max(most, factor.matrix.K);
  run(B, 16 * ranks, [=, &factors](int64_t begin, int64_t end) {
    const auto [x] = thread_buffers<float>(most);
    for (int64_t b = begin; b < end; ++b)
      for (const auto& [matrix, activation, hidden, in] : factors) {
        const int64_t rank = matrix.K;
        if (rank == 0) continue;
        std::copy_n(hidden + b * rank, rank, x);
        if (activation == Activation::tanh)
          for (int64_t i = 0; i < rank; ++i) x[i] = hyperbolic_tangent(x[i]);
        if (activation == Activation::sigmoid)
          for (int64_t i = 0; i < rank; ++i) x[i] = sigmoid(x[i]);
        prepare(matrix, x, b, B, in);
      }
  });
}

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

// What the low-rank products are for, in up to 16 channels of one sequence, beginning at channel n: the decay, the rate
// a, the gate, and the mix of the values with those of layer 0; then the keys. The arithmetic is on all lanes of local
// arrays, so that the compiler vectorises it.
void combine(const TimeMixing7Step& step, const Pieces& at, int64_t b, int64_t n, const Lanes& low_w,
             const Lanes& low_a, const Lanes& low_g, const Lanes& low_v) {
  const int64_t lanes = std::min<int64_t>(kTileRows, step.A() - n), i0 = b * step.A() + n;
  Channels w, a, gate, mix, k, v, first, kappa, w0, a0, v0, k_k, k_a;
  store_lanes(w, low_w), store_lanes(a, low_a), store_lanes(gate, low_g), store_lanes(mix, low_v);
  load(k, at.k + i0, lanes), load(v, at.v + i0, lanes);
  load(w0, step.w0 + n, lanes), load(a0, step.a0 + n, lanes);
  load(k_k, step.k_k + n, lanes), load(k_a, step.k_a + n, lanes);
  for (int i = 0; i < kTileRows; ++i) {
    w[i] = exp_nonpositive(kDecay7 * sigmoid(w0[i] + w[i]));
    a[i] = sigmoid(a0[i] + a[i]);
    kappa[i] = k[i] * k_k[i];
    k[i] *= 1 + (a[i] - 1) * k_a[i];
  }
  if (step.mixes_values()) {
    load(first, step.first + i0, lanes), load(v0, step.v0 + n, lanes);
    for (int i = 0; i < kTileRows; ++i) v[i] += (first[i] - v[i]) * sigmoid(v0[i] + mix[i]);
    store(at.v + i0, v, lanes);
  } else {
    store(step.first + i0, v, lanes);
  }
  store(at.w + i0, w, lanes), store(at.a + i0, a, lanes);
  store(at.k + i0, k, lanes), store(at.kappa + i0, kappa, lanes);
  store(at.gate + i0, gate, lanes);
}

// The recurrence, GroupNorm, bonus and gate of one head of one sequence.
void run_head(const TimeMixing7Step& step, const Pieces& at, int64_t b, int64_t h) {
  const int64_t N = step.N, i0 = b * step.A() + h * N;
  const float *const r = at.r + i0, *const k = at.k + i0, *const v = at.v + i0, *const r_k = step.r_k + h * N;
  float *const kappa = at.kappa + i0, *const y = at.gated + i0;
  const double squares = sum_over(N, [=](int64_t i) { return static_cast<double>(kappa[i]) * kappa[i]; });
  const float scale = static_cast<float>(1 / std::max(std::sqrt(squares), 1e-12));
  for (int64_t i = 0; i < N; ++i) kappa[i] *= scale;

  const int64_t from = origin_of(step.before, step.slots, b), to = slot_of(step.slots, b);
  float* const state = step.wkv + to * step.wkv_stride + h * N * N;
  if (from != to) std::copy_n(step.wkv + from * step.wkv_stride + h * N * N, N * N, state);
  const Wkv7Inputs<float> token{r, at.w + i0, k, v, kappa, at.a + i0, nullptr};
  for (int64_t i = 0; i < N; ++i) {
    float* const row = state + i * N;
    y[i] = updated(row, token, removed(row, kappa, N), v[i], N);
  }

  layer_norm(y, N, {step.heads.weight + h * N, step.heads.bias + h * N, step.heads.eps}, y);
  const float bonus =
      static_cast<float>(sum_over(N, [=](int64_t i) { return static_cast<double>(r[i] * k[i] * r_k[i]); }));
  for (int64_t i = 0; i < N; ++i) y[i] = (y[i] + bonus * v[i]) * at.gate[i0 + i];
}

}  // namespace

int64_t scratch_bytes(const TimeMixing7Step& step) { return Pieces(step, nullptr).size; }

void time_mixing7_step(const TimeMixing7Step& step, void* scratch, const Run& run) {
  const int64_t B = step.B, C = step.C, H = step.H, N = step.N, A = step.A();
  const Pieces at(step, scratch);
  const auto products = at.products(step);
  const auto input = [&](const Product& product) {
    return StepInput{step.mixes + static_cast<int>(product.mix) * C, product.matrix, product.in};
  };
  const std::array<StepInput, kProducts> inputs{{input(products[0]), input(products[1]), input(products[2]),
                                                 input(products[3]), input(products[4]), input(products[5]),
                                                 input(products[6])}};
  prepare_step(step, inputs, at.now, run);
  multiply(products, B, C, run);

  activate(at.factors(step), B, run);
  const int64_t ranks = step.w.first.N + step.a.first.N + step.g.first.N + step.v.first.N;
  run(tile_blocks(A), B * ranks * kTileRows, [=, &step, &at](int64_t begin, int64_t end) {
    const auto [w, a, g, v] = thread_buffers<Lanes, Lanes, Lanes, Lanes>(B, B, B, B);
    for (int64_t block = begin; block < end; ++block) {
      tile_product(step.w.second, block, at.in_w2, B, w);
      tile_product(step.a.second, block, at.in_a2, B, a);
      tile_product(step.g.second, block, at.in_g2, B, g);
      if (step.mixes_values())
        tile_product(step.v.second, block, at.in_v2, B, v);
      else
        std::fill_n(v, B, Lanes{});
      for (int64_t b = 0; b < B; ++b) combine(step, at, b, block * kTileRows, w[b], a[b], g[b], v[b]);
    }
  });

  // One thread runs all sequences of a head: they may take turns on one slot.
  run(H, 4 * B * N * N, [=, &step, &at](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h)
      for (int64_t b = 0; b < B; ++b) run_head(step, at, b, h);
  });

  residual_product(step.output, at.gated, B, at.out, step.x, step.y, run);
}

}  // namespace rwkv::cpu
