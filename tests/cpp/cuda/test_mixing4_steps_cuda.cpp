// Both mixing steps on emulated devices: against their definitions in double precision, and bit for bit against
// themselves.
#include <tuple>

#include "kernels/cuda/channel_mixing4_step.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/time_mixing4_step.h"
#include "mixing_reference.h"

using namespace reference;

namespace {

cudaError_t launch(const TimeMixing4Step& step, void* scratch) {
  return cuda::time_mixing4_step(step, scratch, nullptr);
}

cudaError_t launch(const ChannelMixing4Step& step, void* scratch) {
  return cuda::channel_mixing4_step(step, scratch, nullptr);
}

template <class Arguments>
auto run(const Arguments& arguments, const Slots& slots) {
  auto outcome = arguments.before(slots);
  const auto step = arguments.step(slots, outcome);
  Floats scratch(cuda::scratch_bytes(step) / sizeof(float), NAN);
  CHECK(launch(step, scratch.data()) == cudaSuccess);
  return outcome;
}

template <class Arguments>
void test_step(const Arguments& arguments) {
  const int64_t B = arguments.B;
  for (const Slots& slots : {Slots(B, false), Slots(B, true, B > 2 ? B - 2 : B)})
    arguments.compare(slots, run(arguments, slots));
}

// Keeps `count` of the rows from b on.
void keep(Floats& rows, int64_t b, int64_t count, int64_t width) {
  rows = Floats(rows.begin() + b * width, rows.begin() + (b + count) * width);
}

template <class... Weights>
TimeMixing<Weights...> some_rows(TimeMixing<Weights...> all, int64_t b, int64_t count) {
  for (Floats* rows : {&all.x, &all.shift}) keep(*rows, b, count, all.C);
  for (Floats* rows : {&all.num, &all.den, &all.max}) keep(*rows, b, count, all.A);
  all.B = count;
  return all;
}

template <class... Weights>
ChannelMixing<Weights...> some_rows(ChannelMixing<Weights...> all, int64_t b, int64_t count) {
  for (Floats* rows : {&all.x, &all.shift}) keep(*rows, b, count, all.C);
  all.B = count;
  return all;
}

template <class Arguments>
std::vector<Floats> results(const Arguments& arguments) {
  const auto outcome = run(arguments, {arguments.B, false});
  if constexpr (requires { outcome.num; })
    return {outcome.y, outcome.shift, outcome.num, outcome.den, outcome.max};
  else
    return {outcome.y, outcome.shift};
}

// Whether row b of 16 is row `at` of fewer, bit for bit.
bool same_row(const std::vector<Floats>& all, int64_t b, const std::vector<Floats>& some, int64_t at) {
  bool same = true;
  for (size_t i = 0; i < all.size(); ++i) {
    const size_t width = all[i].size() / 16;
    same = same && memcmp(&all[i][b * width], &some[i][at * width], width * sizeof(float)) == 0;
  }
  return same;
}

template <class Arguments>
void test_rows_are_independent(Arguments arguments) {
  const auto all = results(arguments), again = results(arguments);
  for (int64_t b = 0; b < 16; ++b) CHECK(same_row(all, b, again, b), b);
  for (const auto& [b, count] : {std::pair<int64_t, int64_t>{0, 1}, {15, 1}, {6, 2}, {9, 3}, {3, 7}}) {
    const auto some = results(some_rows(arguments, b, count));
    for (int64_t i = 0; i < count; ++i) CHECK(same_row(all, b + i, some, i), b, count, i);
  }
  arguments.x[3 * arguments.C] = NAN;
  const auto with_nan = results(arguments);
  for (int64_t b = 0; b < 16; ++b) {
    if (b != 3) CHECK(same_row(all, b, with_nan, b), b);
    for (int64_t c = 0; b == 3 && c < arguments.C; ++c) CHECK(std::isnan(with_nan[0][b * arguments.C + c]), c);
  }
}

// With keys that make every input of the value matrix zero, none of its rows is read and x is returned as it is; with
// keys that leave a single one, only that row.
template <class Weight>
void test_zeros_are_not_read(int64_t B, int64_t C, int64_t F) {
  ChannelMixing<Weight> arguments(B, C, F);
  std::fill(arguments.weight.begin(), arguments.weight.end(), 0.0f);  // LayerNorm(x) = bias
  std::fill(arguments.bias.begin(), arguments.bias.end(), 1.0f);
  std::fill(arguments.mix_k.begin(), arguments.mix_k.end(), 1.0f);
  auto negative = random_weight<Weight>(1);
  while (value_of(negative) >= 0) negative = random_weight<Weight>(1);
  arguments.key = RandomMatrix<Weight>(F, C, [=](int64_t, int64_t) { return negative; });
  ChannelMixing<Weight> poisoned = arguments;
  poisoned.value.poison(F);
  CHECK(run(poisoned, {B, true}).y == arguments.x, B, C, F);

  const int64_t only = F - 1;
  auto positive = random_weight<Weight>(1);
  while (value_of(positive) <= 0) positive = random_weight<Weight>(1);
  arguments.key = RandomMatrix<Weight>(F, C, [=](int64_t f, int64_t) { return f == only ? positive : negative; });
  poisoned = arguments;
  poisoned.value.poison(only);
  const auto expected = run(arguments, {B, true}), got = run(poisoned, {B, true});
  CHECK(got.y == expected.y, B, C, F);
  arguments.compare({B, true}, expected);
}

// Padding rows share a slot; none of the value matrix's rows is read for them, and the results of others are the same.
void test_padding_rows_do_not_vote() {
  ChannelMixing<Bfloat16> arguments(6, 24, 45);
  const Slots padded(6, true, 4);
  const auto with = run(arguments, padded), without = run(arguments, {6, true});
  const auto same = [&](const Floats& one, const Floats& other, int64_t from, int64_t to) {
    return std::equal(one.begin() + from * arguments.C, one.begin() + to * arguments.C,
                      other.begin() + from * arguments.C);
  };
  CHECK(same(with.y, without.y, 0, 4) && same(with.y, arguments.x, 4, 6));
  CHECK(!same(without.y, arguments.x, 4, 5) && !same(without.y, arguments.x, 5, 6));
  // With a single row of one slot nothing is left out.
  const auto alone = run(arguments, Slots(6, true, 5));
  CHECK(alone.y == without.y);
}

// The relu keeps NaN, and NaN is not zero.
template <class Weight>
void test_nan_is_not_hidden() {
  ChannelMixing<Weight> arguments(1, 8, 40);
  arguments.key = RandomMatrix<Weight>(40, 8, [](int64_t, int64_t) { return nan_weight<Weight>(); });
  for (float& scale : arguments.key.of_rows) scale = NAN;  // int8 has no NaN
  for (float y : run(arguments, {1, false}).y) CHECK(std::isnan(y));
}

// Sizes of tiles, words and rows that fit, and that do not.
template <class Weight>
void test_sizes(std::initializer_list<int64_t> batches) {
  for (const int64_t B : batches)
    for (const auto& [c, inner] : {std::pair<int64_t, int64_t>{1, 1}, {8, 33}, {33, 8}, {40, 130}}) {
      test_step(TimeMixing<Weight>(B, c, inner));
      test_step(ChannelMixing<Weight>(B, c, inner));
    }
  test_step(TimeMixing<Weight>(18, 24, 17));  // more than one group of 16
  test_step(ChannelMixing<Weight>(18, 24, 17));
  test_nan_is_not_hidden<Weight>();
  for (const int64_t C : {24, 33}) test_zeros_are_not_read<Weight>(2, C, 45);
}

// More than one chunk of activations, and more inputs of the value matrix than workers have words.
template <class Weight>
void test_long_rows() {
  constexpr int64_t kColumns = 16 / sizeof(Weight), kInputs = sizeof(Weight) == 1 ? 8300 : 4200;
  test_step(TimeMixing<Weight>(2, 2056, 33));
  test_step(TimeMixing<Weight>(1, 33, 2056));
  test_step(ChannelMixing<Weight>(2, kColumns, kInputs));
  test_step(ChannelMixing<Weight>(1, 2056, 40));
}

// Outputs of one word of int4 weights, of its first half, of several words, and of an incomplete last one.
void test_int4_words() {
  for (const auto& [b, c, inner] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 128, 33}, {2, 65, 64}, {3, 200, 70}, {16, 129, 5}, {1, 1100, 40}})
    test_step(ChannelMixing<Int4>(b, c, inner));
}

// Matrices of one step in two and in three formats.
void test_mixed_formats() {
  for (const int64_t B : {3, 18}) {
    test_step(TimeMixing<int8_t, Int4, Int4, int8_t>(B, 40, 33));
    test_step(TimeMixing<Int4, Int4, int8_t, Int4>(B, 65, 17));
    test_step(TimeMixing<Bfloat16, Int4, int8_t, float>(B, 24, 40));
    test_step(ChannelMixing<Int4, int8_t, int8_t>(B, 40, 130));
    test_step(ChannelMixing<int8_t, Int4, Int4>(B, 130, 33));
    test_step(ChannelMixing<Int4, Int4, Bfloat16>(B, 24, 45));
    test_step(ChannelMixing<float, Bfloat16, Int4>(B, 33, 45));
  }
}

// What a missing barrier would show in: several chunks of activations, several warps.
template <class Weight>
void test_order() {
  test_step(TimeMixing<Weight>(5, 300, 17));
  test_step(TimeMixing<Weight>(5, 17, 300));
  test_step(ChannelMixing<Weight>(5, 300, 40));
}

}  // namespace

int main() {
  emulation::in_every_order([](const char*) {
    test_order<Bfloat16>();
    test_order<int8_t>();
  });
  if (failure_count()) return failures();  // a barrier is missing: the rest has no more to say
  test_sizes<float>({1, 3});
  test_sizes<Bfloat16>({2, 5, 16});
  test_sizes<Float16>({1});
  test_sizes<int8_t>({1, 3, 16});
  test_sizes<Int4>({1, 5});
  test_padding_rows_do_not_vote();
  test_int4_words();
  test_mixed_formats();
  test_long_rows<Float16>();
  test_long_rows<int8_t>();
  test_long_rows<Int4>();
  test_rows_are_independent(TimeMixing<Bfloat16>(16, 300, 17));
  test_rows_are_independent(TimeMixing<int8_t>(16, 300, 17));
  test_rows_are_independent(TimeMixing<Int4>(16, 300, 17));
  test_rows_are_independent(TimeMixing<Int4, int8_t, Int4, float>(16, 300, 17));
  test_rows_are_independent(ChannelMixing<float>(16, 8, 4200));
  test_rows_are_independent(ChannelMixing<int8_t>(16, 48, 300));
  test_rows_are_independent(ChannelMixing<Int4>(16, 48, 300));
  test_rows_are_independent(ChannelMixing<Int4, int8_t, Int4>(16, 140, 300));
  return failures();
}
