#include "kernels/cpu/draw_tokens.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "kernels/math.h"

namespace rwkv::cpu {
namespace {

// Weights in [2^-46, 1] in buckets, by their exponent and 6 bits of their mantissa.
constexpr int kShift = 46;
int64_t bucket_of(double weight) { return (bits_of(weight) - bits_of(kLeast)) >> kShift; }

// The last token before which the measures of tokens sum to less than target(their sum over all tokens), which is
// positive. measure(i) is that of token i, an integer >= 0, and 0 below kLeast.
template <class Target, class Measure>
Place last_place(const std::vector<double>& weights, const Target& target_of, const Measure& measure) {
  constexpr int64_t kBlock = 128;
  constexpr uint16_t kNone = -1;
  const auto V = static_cast<int64_t>(weights.size());
  std::vector<uint16_t> buckets((V + kBlock - 1) / kBlock * kBlock, kNone);
  // Two, because an addition to a bucket waits for the one before it.
  std::array<std::vector<int64_t>, 2> halves;
  for (auto& sums : halves) sums.resize(bucket_of(1) + 1);
  for (int64_t begin = 0; begin < V; begin += kBlock) {
    const int64_t n = std::min(kBlock, V - begin);
    int64_t measures[kBlock];  // apart from the additions, so that the compiler vectorises this
    for (int64_t i = 0; i < n; ++i) {
      const double weight = weights[begin + i];
      buckets[begin + i] = bucket_of(weight >= kLeast ? weight : kLeast), measures[i] = measure(begin + i);
    }
    for (int64_t i = 0; i + 1 < n; i += 2) {
      halves[0][buckets[begin + i]] += measures[i];
      halves[1][buckets[begin + i + 1]] += measures[i + 1];
    }
    if (n % 2) halves[0][buckets[begin + n - 1]] += measures[n - 1];
  }
  auto& [sums, others] = halves;
  int64_t all = 0;
  for (size_t bucket = 0; bucket < sums.size(); ++bucket) all += sums[bucket] += others[bucket];

  const double target = target_of(all);
  int64_t before = 0, last = -1;
  for (int64_t bucket = sums.size() - 1; bucket >= 0 && static_cast<double>(before) < target; --bucket)
    if (sums[bucket] > 0) last = bucket, before += sums[bucket];
  before -= sums[last];

  std::vector<Place> inside;
  constexpr int64_t kFew = 32;  // which seldom contain one of the bucket, and are compared at once
  const auto wanted = static_cast<uint16_t>(last);
  for (size_t begin = 0; begin < buckets.size(); begin += kFew) {
    uint16_t hits = 0;
    for (int64_t i = 0; i < kFew; ++i) hits |= buckets[begin + i] == wanted;
    for (int64_t i = begin; hits && i < static_cast<int64_t>(begin) + kFew; ++i)
      if (buckets[i] == wanted && weights[i] >= kLeast) inside.push_back({weights[i], i});
  }
  const auto is_before = [](const Place& a, const Place& b) {
    return a.includes(b.weight, b.id) < b.includes(a.weight, a.id);
  };
  const auto added = [&](int64_t sum, const Place& place) { return sum + measure(place.id); };
  auto begin = inside.begin(), end = inside.end();
  while (end - begin > 1) {  // half of what is left, which takes less time than to sort it
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, is_before);
    if (const int64_t sum = std::accumulate(begin, middle, before, added); static_cast<double>(sum) >= target)
      end = middle;
    else
      begin = middle, before = sum;
  }
  return *begin;
}

// The largest of V logits, or NaN if one is not as `DrawTokens` says; `bans`: whether they may be -inf. A maximum for
// each of several lanes, because the compiler does not reorder comparisons of floating-point numbers.
template <bool bans, class Logit>
Logit largest_of(const Logit* logits, int64_t V) {
  constexpr int kLanes = 32;
  constexpr Logit kInfinity = std::numeric_limits<Logit>::infinity(), kNan = std::numeric_limits<Logit>::quiet_NaN();
  Logit largest[kLanes];
  std::fill_n(largest, kLanes, -kInfinity);
  const auto include = [&](Logit& most, Logit logit) {  // NaN stays, because it is not smaller than any number
    most = logit > most ? logit : most;
    most = (logit < kInfinity) & (bans | (logit > -kInfinity)) ? most : kNan;
  };
  int64_t i = 0;
  for (; i + kLanes <= V; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) include(largest[lane], logits[i + lane]);
  for (; i < V; ++i) include(largest[0], logits[i]);
  Logit most = largest[0];
  for (const Logit& lane : largest) most = lane > most || lane != lane ? lane : most;
  return most;
}

// Copies the logits of a row, with -inf for the tokens that are not allowed.
template <class Logit>
void restrict_row(const DrawTokens<Logit>& draw, int64_t b, std::vector<Logit>& restricted) {
  const Logit* const logits = draw.logits + b * draw.V;
  const int32_t* const mask = draw.mask(b);
  restricted.resize(draw.V);
  for (int64_t begin = 0; begin < draw.V; begin += kMaskBits) {
    const int32_t word = mask[begin / kMaskBits];
    const int64_t n = std::min(kMaskBits, draw.V - begin);
    for (int64_t i = 0; i < n; ++i)
      restricted[begin + i] = word >> i & 1 ? logits[begin + i] : -std::numeric_limits<Logit>::infinity();
  }
}

// Makes the weights of tokens after `last` zero.
void keep(const Place& last, std::vector<double>& weights) {
  for (size_t i = 0; i < weights.size(); ++i)
    weights[i] = last.includes(weights[i], static_cast<int64_t>(i)) ? weights[i] : 0;
}

// Memory that rows use one after the other.
template <class Logit>
struct Scratch {
  std::vector<double> weights;  // of V tokens
  std::vector<int64_t> sums;
  std::vector<Logit> restricted;
};

template <class Logit>
int64_t draw_token(const DrawTokens<Logit>& draw, int64_t b, Scratch<Logit>& scratch) {
  auto& [weights, sums, restricted] = scratch;
  const int64_t V = draw.V, top_k = draw.top_k[b];
  const double temperature = draw.temperatures[b], top_p = draw.top_p[b], min_p = draw.min_p[b];
  const Logit* logits = draw.logits + b * V;
  Logit largest = largest_of<std::is_same_v<Logit, double>>(logits, V);
  if (largest != largest) return -1;
  if (draw.allowed) {
    restrict_row(draw, b, restricted);
    logits = restricted.data(), largest = largest_of<true>(logits, V);
  }
  if (largest == -std::numeric_limits<Logit>::infinity()) return draw.allowed ? kNoneAllowed : -1;
  if (temperature == 0) return std::find(logits, logits + V, largest) - logits;

  const auto subtracted = static_cast<double>(largest);
  const double scale = reciprocal(temperature);
  for (int64_t i = 0; i < V; ++i) weights[i] = exp_nonpositive((logits[i] - subtracted) * scale);
  if (0 < top_k && top_k < V) {
    const auto target = [=](int64_t) { return static_cast<double>(top_k); };
    keep(last_place(weights, target, [&](int64_t i) { return weights[i] >= kLeast; }), weights);
  }
  Place last{0, V};
  if (top_p < 1) {
    const auto target = [=](int64_t all) { return top_p * static_cast<double>(all); };
    last = last_place(weights, target, [&](int64_t i) { return whole_number(weights[i]); });
  }
  const auto kept = [&](int64_t i) {
    return (weights[i] >= min_p) & last.includes(weights[i], i) ? whole_number(weights[i]) : 0;
  };

  constexpr int64_t kBlock = 256;
  sums.clear();
  for (int64_t begin = 0; begin < V; begin += kBlock) {
    int64_t sum = 0;
    for (int64_t i = begin; i < std::min(begin + kBlock, V); ++i) sum += kept(i);
    sums.push_back(sum);
  }
  const int64_t total = std::accumulate(sums.begin(), sums.end(), int64_t{0});
  // A product may be rounded up to the total itself, which no sum exceeds.
  int64_t target = std::min(static_cast<int64_t>(draw.fraction(b) * static_cast<double>(total)), total - 1);
  int64_t block = 0;
  while (sums[block] <= target) target -= sums[block++];
  int64_t id = block * kBlock;
  for (int64_t whole; (whole = kept(id)) <= target; ++id) target -= whole;
  return id;
}

}  // namespace

template <class Logit>
void draw_tokens(const DrawTokens<Logit>& draw, const Run& run) {
  constexpr int64_t kWork = 32;  // multiply-adds, about, per logit
  run(draw.B, kWork * draw.V, [&](int64_t begin, int64_t end) {
    Scratch<Logit> scratch;
    scratch.weights.resize(draw.V);
    for (int64_t b = begin; b < end; ++b) draw.ids[b] = draw_token(draw, b, scratch);
  });
}

template void draw_tokens(const DrawTokens<float>&, const Run&);
template void draw_tokens(const DrawTokens<double>&, const Run&);

}  // namespace rwkv::cpu
