// Sampled tokens against a definition that sorts the whole vocabulary.
#include <limits>
#include <vector>

#include "check.h"
#include "draws.h"
#include "kernels/cpu/draw_tokens.h"
#include "threads.h"

using namespace rwkv;

namespace {

template <class Logit>
void test(int64_t B, int64_t V, double spread, bool are_equal, bool by_keys = false, unsigned one_of = 0) {
  Rows<Logit> rows(B, V, spread, are_equal);
  if (by_keys) rows.draw_by_keys();
  if (one_of) rows.restrict(one_of);
  check_same_bits([&](const cpu::Run& run) {
    std::fill(rows.ids.begin(), rows.ids.end(), -3);
    cpu::draw_tokens(rows.arguments(), run);
    return bytes_of(rows.ids);
  });
  for (int64_t b = 0; b < B; ++b)
    CHECK(rows.ids[b] == rows.expected(b), B, V, spread, b, rows.ids[b], rows.temperatures[b], rows.top_k[b],
          rows.top_p[b], rows.min_p[b]);
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
        cpu::draw_tokens(DrawTokens<Logit>{1, V, logits.data(), &one, &one, &none, &half, &k, &id}, on_threads(1));
        const bool is_sound = bans && value == -inf && V > 1;
        CHECK(is_sound ? id >= 0 && id != at : id == -1, V, value, at, id);
        const std::vector<int32_t> none_allowed(mask_words(V), 0);
        cpu::draw_tokens(DrawTokens<Logit>{.B = 1,
                                           .V = V,
                                           .logits = logits.data(),
                                           .temperatures = &one,
                                           .top_p = &one,
                                           .min_p = &none,
                                           .draws = &half,
                                           .top_k = &k,
                                           .ids = &id,
                                           .seeds = nullptr,
                                           .samples = nullptr,
                                           .positions = nullptr,
                                           .allowed = none_allowed.data()},
                         on_threads(1));
        CHECK(id == (bans && value == -inf ? kNoneAllowed : -1), V, value, at, id);
      }
}

}  // namespace

int main() {
  for (const int64_t V : {1, 2, 31, 33, 255, 256, 257, 1000})
    for (const double spread : {0.001, 2.0, 40.0})
      for (const bool are_equal : {false, true})
        test<float>(23, V, spread, are_equal), test<double>(9, V, spread, are_equal);
  test<float>(3, 20000, 2.0, false);
  test<float>(23, 100, 2.0, false, true);
  for (const int64_t V : {1, 31, 32, 33, 1000})
    for (const unsigned one_of : {1, 3, 50}) test<float>(23, V, 2.0, false, false, one_of);
  test<double>(9, 100, 2.0, true, false, 3);
  test_unsound<float>(), test_unsound<double>();
  return failures();
}
