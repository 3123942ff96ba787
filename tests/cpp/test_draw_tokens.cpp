// Sampled tokens against a definition that sorts the whole vocabulary.
#include <numeric>
#include <vector>

#include "check.h"
#include "kernels/cpu/draw_tokens.h"
#include "kernels/math.h"
#include "threads.h"

using namespace rwkv;

namespace {

std::mt19937 random_bits(3);

double uniform() { return random_bits() * 0x1p-32; }

struct Parameters {
  double temperature, top_p, min_p;
  int64_t top_k;
};

template <class Logit>
int64_t defined(const Logit* logits, int64_t V, const Parameters& of, double draw) {
  const double largest = *std::max_element(logits, logits + V);
  if (of.temperature == 0) return std::find(logits, logits + V, static_cast<Logit>(largest)) - logits;
  std::vector<double> weights(V);
  for (int64_t i = 0; i < V; ++i) weights[i] = exp_nonpositive((logits[i] - largest) / of.temperature);
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
  return -2;
}

template <class Logit>
void test(int64_t B, int64_t V, double spread, bool are_equal) {
  std::normal_distribution<double> normal(0, spread);
  std::vector<Logit> logits(B * V);
  for (Logit& logit : logits)
    logit = static_cast<Logit>(are_equal ? std::round(normal(random_bits)) : normal(random_bits));
  const double temperatures[] = {0, 0.01, 0.8, 1, 5}, tops[] = {1e-9, 0.3, 0.9, 1}, mins[] = {0, 0.05, 1};
  const int64_t counts[] = {0, 1, 2, 40};
  std::vector<double> temperature, top_p, min_p, draws;
  std::vector<int64_t> top_k;
  for (int64_t b = 0; b < B; ++b) {
    temperature.push_back(temperatures[random_bits() % 5]), top_p.push_back(tops[random_bits() % 4]);
    min_p.push_back(mins[random_bits() % 3]), top_k.push_back(counts[random_bits() % 4]);
    draws.push_back(b % 7 ? uniform() : 1 - 0x1p-53);
  }
  std::vector<int64_t> ids(B, -3);
  const cpu::DrawTokens<Logit> draw{
      B, V, logits.data(), temperature.data(), top_p.data(), min_p.data(), draws.data(), top_k.data(), ids.data()};
  check_same_bits([&](const cpu::Run& run) {
    std::fill(ids.begin(), ids.end(), -3);
    cpu::draw_tokens(draw, run);
    return bytes_of(ids);
  });
  for (int64_t b = 0; b < B; ++b) {
    const int64_t expected = defined(&logits[b * V], V, {temperature[b], top_p[b], min_p[b], top_k[b]}, draws[b]);
    CHECK(ids[b] == expected, B, V, spread, b, ids[b], expected, temperature[b], top_k[b], top_p[b], min_p[b]);
  }
}

template <class Logit>
void test_unsound() {
  constexpr Logit inf = std::numeric_limits<Logit>::infinity();
  constexpr bool bans = std::is_same_v<Logit, double>;
  for (const int64_t V : {1, 31, 32, 33, 100})
    for (const Logit value : {inf, -inf, std::numeric_limits<Logit>::quiet_NaN()})
      for (const int64_t at : {int64_t{0}, V / 2, V - 1}) {
        std::vector<Logit> logits(V, 1);
        logits[at] = value;
        const double one = 1, none = 0, half = 0.5;
        const int64_t k = 0;
        int64_t id = -3;
        cpu::draw_tokens(cpu::DrawTokens<Logit>{1, V, logits.data(), &one, &one, &none, &half, &k, &id}, on_threads(1));
        const bool is_sound = bans && value == -inf && V > 1;
        CHECK(is_sound ? id >= 0 && id != at : id == -1, V, value, at, id);
      }
}

}  // namespace

int main() {
  for (const int64_t V : {1, 2, 31, 33, 255, 256, 257, 1000})
    for (const double spread : {0.001, 2.0, 40.0})
      for (const bool are_equal : {false, true})
        test<float>(23, V, spread, are_equal), test<double>(9, V, spread, are_equal);
  test<float>(3, 20000, 2.0, false);
  test_unsound<float>(), test_unsound<double>();
  return failures();
}
