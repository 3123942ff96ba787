#include "kernels/cpu/time_mixing7_step.h"

#include <algorithm>

#include "kernels/cpu/gates7.h"
#include "kernels/cpu/residual_product.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/step_inputs.h"
#include "kernels/cpu/wkv7.h"

namespace rwkv::cpu {
namespace {

// A product of a mix, in its order of execution.
struct Product {
  const Matrix& matrix;
  Mix7 mix;
  char* in;    // prepared
  float* out;  // (B, N)
};
constexpr int kProducts = 7;
constexpr int64_t kTogether = 16;  // rows, times blocks of channels, whose four second factors are computed in turn

Gates7 gates_of(const TimeMixing7Step& step) {
  return {step.C, step.A(), step.w0, step.a0, step.v0, step.k_k, step.k_a, step.w, step.a, step.g, step.v};
}

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
  // Of each low-rank product.
  std::array<const float*, kLowRanks> hidden() const { return {hidden_w, hidden_a, hidden_g, hidden_v}; }
  std::array<char*, kLowRanks> second_inputs() const { return {in_w2, in_a2, in_g2, in_v2}; }
  Rows7 rows(const TimeMixing7Step& step) const { return {k, v, w, k, v, kappa, a, gate, step.first}; }
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
        for (int64_t b = 0; b < B; ++b) copy_lanes(reinterpret_cast<const float*>(sums + b), lanes, out + b * N + n);
      }
      before += own;
    }
  });
}

// The inputs of the second factors: ranks are small, so a row is one unit of work.
void activate(const LowRanks7& products, const Pieces& at, int64_t B, const Run& run) {
  int64_t ranks = 0, most = 0;
  for (const LowRankOf& product : products.of)
    ranks += product.factors.second.K, most = std::max(most, product.factors.second.K);
  run(B, 16 * ranks, [=, &products, &at](int64_t begin, int64_t end) {
    const auto [x] = thread_buffers<float>(most);
    for (int64_t b = begin; b < end; ++b)
      for (int i = 0; i < kLowRanks; ++i) {
        const auto& [factors, mix, activation] = products.of[i];
        const float* const hidden = at.hidden()[i] + b * factors.second.K;
        prepare_activated(factors.second, activation, hidden, b, B, x, at.second_inputs()[i]);
      }
  });
}

// The recurrence, GroupNorm, bonus and gate of one head of one sequence.
void run_head(const TimeMixing7Step& step, const Pieces& at, int64_t b, int64_t h) {
  const int64_t N = step.N, i0 = b * step.A() + h * N;
  normalise(at.kappa + i0, N);
  const int64_t from = origin_of(step.before, step.slots, b), to = slot_of(step.slots, b);
  float* const state = step.wkv + to * step.wkv_stride + h * N * N;
  if (from != to) std::copy_n(step.wkv + from * step.wkv_stride + h * N * N, N * N, state);
  const Wkv7Inputs<float> token{at.r + i0, at.w + i0, at.k + i0, at.v + i0, at.kappa + i0, at.a + i0, nullptr};
  wkv7_rows(token, 0, N, N, state, at.gated + i0);
  const LayerNorm norm{step.heads.weight + h * N, step.heads.bias + h * N, step.heads.eps};
  gate_head(token.r, token.k, token.v, step.r_k + h * N, norm, at.gate + i0, N, at.gated + i0);
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

  const Gates7 gates = gates_of(step);
  const LowRanks7 low_ranks(gates);
  activate(low_ranks, at, B, run);
  const int64_t ranks = step.w.first.N + step.a.first.N + step.g.first.N + step.v.first.N;
  run(tile_blocks(A), B * ranks * kTileRows, [=, &gates, &low_ranks, &at, &step](int64_t begin, int64_t end) {
    const int64_t together = std::min(end - begin, std::max<int64_t>(1, kTogether / B));
    const auto [sums] = thread_buffers<Lanes>(together * kLowRanks * B);
    for (int64_t first = begin; first < end; first += together) {
      const int64_t blocks = std::min(together, end - first);
      second_products(low_ranks, at.second_inputs().data(), first, blocks, B, sums);
      for (int64_t i = 0; i < blocks; ++i)
        for (int64_t b = 0; b < B; ++b) {
          const auto of = [=, sums = sums](int64_t product) { return sums[(product * blocks + i) * B + b]; };
          const Lanes low[] = {of(0), of(1), of(2), of(3)};
          combine(gates, at.rows(step), b, (first + i) * kTileRows, low);
        }
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
