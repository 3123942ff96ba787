// Sampled tokens against a definition that sorts the whole vocabulary, and the CPU's kernel.
#include <iterator>
#include <limits>
#include <vector>

#include "check.h"
#include "draws.h"
#include "kernels/cpu/draw_tokens.h"
#include "kernels/cuda/draw_tokens.h"

using namespace rwkv;

namespace {

template <class Logit>
void draw(Rows<Logit>& rows) {
  std::fill(rows.ids.begin(), rows.ids.end(), -3);
  std::vector<double> scratch(cuda::draw_scratch_numbers(rows.B, rows.V), std::numeric_limits<double>::quiet_NaN());
  CHECK(cuda::draw_tokens(rows.arguments(), scratch.data(), nullptr) == cudaSuccess, rows.B, rows.V);
}

template <class Logit>
void test(const char* order, int64_t B, int64_t V, double spread, bool are_equal, bool by_keys = false,
          unsigned one_of = 0) {
  Rows<Logit> rows(B, V, spread, are_equal);
  if (by_keys) rows.draw_by_keys();
  if (one_of) rows.restrict(one_of);
  draw(rows);
  for (int64_t b = 0; b < B; ++b)
    CHECK(rows.ids[b] == rows.expected(b), order, B, V, spread, b, rows.ids[b], rows.expected(b), rows.temperatures[b],
          rows.top_k[b], rows.top_p[b], rows.min_p[b]);
  std::vector<int64_t> likely(B, -3);
  CHECK(cuda::most_likely(rows.logits.data(), B, V, likely.data(), nullptr) == cudaSuccess, B, V);
  for (int64_t b = 0; b < B; ++b) {
    const auto row = rows.logits.begin() + b * V;
    CHECK(likely[b] == std::max_element(row, row + V) - row, order, B, V, b, likely[b]);
  }
}

// Sums that end within tokens of the same weight; a top-k beyond the tokens that have a weight; each parameter alone.
void test_chosen(const char* order) {
  const Parameters all[] = {{0.7, 0.5, 0, 3},    {0.7, 1, 0, 700}, {0.7, 0.5, 0, 700}, {0.01, 1, 0, 40},
                            {0.01, 0.9, 0, 900}, {1, 1, 0.4, 0},   {1, 0.3, 0, 0},     {1, 1, 0, 0}};
  for (const bool are_equal : {false, true}) {
    Rows<float> rows(std::size(all), 1500, 0.8, are_equal);
    for (size_t b = 0; b < std::size(all); ++b) {
      rows.temperatures[b] = all[b].temperature, rows.top_p[b] = all[b].top_p;
      rows.min_p[b] = all[b].min_p, rows.top_k[b] = all[b].top_k;
    }
    draw(rows);
    for (int64_t b = 0; b < rows.B; ++b)
      CHECK(rows.ids[b] == rows.expected(b), order, are_equal, b, rows.ids[b], rows.expected(b));
  }
}

template <class Logit>
void test_unsound(const char* order) {
  constexpr Logit inf = std::numeric_limits<Logit>::infinity();
  constexpr bool bans = std::is_same_v<Logit, double>;
  for (const int64_t V : {1, 1500})
    for (const Logit value : {inf, -inf, std::numeric_limits<Logit>::quiet_NaN()}) {
      Rows<Logit> rows(1, V, 1.0, false);
      rows.logits[V - 1] = value, rows.temperatures = {1.0};
      draw(rows);
      int64_t likely = -3;
      CHECK(cuda::most_likely(rows.logits.data(), 1, V, &likely, nullptr) == cudaSuccess, V);
      const bool is_sound = bans && value == -inf && V > 1;
      for (const int64_t id : {rows.ids[0], likely})
        CHECK(is_sound ? id >= 0 && id != V - 1 : id == -1, order, V, value, id);
      rows.allowed.assign(mask_words(V), 0);
      draw(rows);
      CHECK(rows.ids[0] == (bans && value == -inf ? kNoneAllowed : -1), order, V, value, rows.ids[0]);
    }
}

}  // namespace

int main() {
  emulation::in_every_order([](const char* order) {
    for (const int64_t V : {1, 33, 1025, 3000})  // few: a block has 1,024 threads
      for (const bool are_equal : {false, true}) test<float>(order, 3, V, 2.0, are_equal);
    test<double>(order, 2, 1025, 40.0, false);
    test<float>(order, 5, 40, 2.0, false, true);
    test<float>(order, 9, 70, 2.0, true, false, 3), test<double>(order, 6, 1025, 2.0, false, false, 40);
    test_chosen(order);
    test_unsound<float>(order), test_unsound<double>(order);
    Rows<float> none(0, 5, 1.0, false);
    draw(none);
  });
  return failures();
}
