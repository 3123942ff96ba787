// Rows to draw tokens from, and the definition of what is drawn, which sorts the whole vocabulary. For the kernels of
// every device.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/draw_tokens.h"
#include "kernels/math.h"

inline std::mt19937 random_bits(3);

inline double uniform() { return random_bits() * 0x1p-32; }

struct Parameters {
  double temperature, top_p, min_p;
  int64_t top_k;
};

template <class Logit>
int64_t defined(const Logit* logits, int64_t V, const Parameters& of, double draw) {
  const double largest = *std::max_element(logits, logits + V);
  if (largest == -std::numeric_limits<double>::infinity()) return rwkv::kNoneAllowed;
  if (of.temperature == 0) return std::find(logits, logits + V, static_cast<Logit>(largest)) - logits;
  std::vector<double> weights(V);
  const double scale = rwkv::reciprocal(of.temperature);
  for (int64_t i = 0; i < V; ++i) weights[i] = rwkv::exp_nonpositive((logits[i] - largest) * scale);
  const auto whole = [&](int64_t i) { return static_cast<int64_t>(std::nearbyint(weights[i] * 0x1p45)); };
  std::vector<int64_t> order(V);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return weights[a] > weights[b]; });
  if (of.top_k && of.top_k < V) order.resize(of.top_k);
  int64_t total = 0, before = 0;
  for (int64_t i : order) total += whole(i);
  std::vector<int64_t> kept;
  for (int64_t i : order) {
    if ((of.top_p == 1 || static_cast<double>(before) < of.top_p * static_cast<double>(total)) &&
        weights[i] >= of.min_p)
      kept.push_back(i);
    before += whole(i);
  }
  std::sort(kept.begin(), kept.end());
  total = 0;
  for (int64_t i : kept) total += whole(i);
  int64_t target = std::min(static_cast<int64_t>(draw * static_cast<double>(total)), total - 1);
  for (int64_t i : kept)
    if ((target -= whole(i)) < 0) return i;
  return -4;
}

// B rows of V random logits, many of them equal or none, with random parameters.
template <class Logit>
struct Rows {
  int64_t B, V;
  std::vector<Logit> logits;
  std::vector<double> temperatures, top_p, min_p, draws;
  std::vector<int64_t> top_k, ids, keys[3];  // keys: seeds, samples and positions, if the kernel makes the draws
  std::vector<int32_t> allowed;

  Rows(int64_t B, int64_t V, double spread, bool are_equal) : B(B), V(V), ids(B, -3) {
    std::normal_distribution<double> normal(0, spread);
    for (int64_t i = 0; i < B * V; ++i) {
      const double logit = normal(random_bits);
      logits.push_back(static_cast<Logit>(are_equal ? std::round(logit) : logit));
    }
    const double some_temperatures[] = {0, 0.01, 0.8, 1, 5}, tops[] = {1e-9, 0.3, 0.9, 1}, mins[] = {0, 0.05, 1};
    const int64_t counts[] = {0, 1, 2, 40};
    for (int64_t b = 0; b < B; ++b) {
      temperatures.push_back(some_temperatures[random_bits() % 5]), top_p.push_back(tops[random_bits() % 4]);
      min_p.push_back(mins[random_bits() % 3]), top_k.push_back(counts[random_bits() % 4]);
      draws.push_back(b % 7 ? uniform() : 1 - 0x1p-53);
    }
  }
  // Replaces the draws by those of random seeds, samples and positions.
  void draw_by_keys() {
    for (auto& key : keys)
      for (int64_t b = 0; b < B; ++b)
        key.push_back(static_cast<int64_t>(uint64_t{random_bits()} << 32 | random_bits()));
    for (int64_t b = 0; b < B; ++b) draws[b] = rwkv::philox_number(keys[0][b], keys[1][b], keys[2][b]);
  }
  // Allows about one token of so many, in every third row none or all; bits beyond the vocabulary are random as well.
  void restrict(unsigned one_of) {
    allowed.assign(B * rwkv::mask_words(V), 0);
    for (size_t i = 0; i < allowed.size(); ++i) {
      const auto b = static_cast<int64_t>(i) / rwkv::mask_words(V);
      for (unsigned bit = 0; bit < 32; ++bit) allowed[i] |= (random_bits() % one_of == 0 ? 1U : 0U) << bit;
      if (b % 3 == 2) allowed[i] = b % 2 ? -1 : 0;
    }
  }
  rwkv::DrawTokens<Logit> arguments() {
    const double* const numbers = keys[0].empty() ? draws.data() : nullptr;
    return {B,
            V,
            logits.data(),
            temperatures.data(),
            top_p.data(),
            min_p.data(),
            numbers,
            top_k.data(),
            ids.data(),
            keys[0].data(),
            keys[1].data(),
            keys[2].data(),
            allowed.empty() ? nullptr : allowed.data()};
  }
  int64_t expected(int64_t b) const {
    std::vector<double> restricted(V);
    for (int64_t i = 0; i < V; ++i) {
      const bool is_allowed = allowed.empty() || allowed[b * rwkv::mask_words(V) + i / 32] >> i % 32 & 1;
      restricted[i] = is_allowed ? logits[b * V + i] : -std::numeric_limits<double>::infinity();
    }
    return defined(restricted.data(), V, {temperatures[b], top_p[b], min_p[b], top_k[b]}, draws[b]);
  }
};
