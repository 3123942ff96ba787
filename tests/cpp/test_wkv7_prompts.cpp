// What is around RWKV-7's recurrence in prompts has the same bits on any number of threads, and for each token alone.
// What it computes is tested against float64 from Python.
#include <span>

#include "kernels/cpu/wkv7_gated.h"
#include "kernels/cpu/wkv7_inputs.h"
#include "layers7.h"
#include "threads.h"

using namespace reference;

namespace {

template <class Low>
struct Prompt {
  int64_t M, C, H, N, A = H * N;
  Layer<float, Low> layer;
  Floats mixed = normal(kMixes7 * M * C), key = normal(M * A), value = normal(M * A), first = normal(M * A);
  Floats r = normal(M * A), y = normal(M * A);

  Prompt(int64_t M, int64_t C, int64_t H, int64_t N, bool is_first)
      : M(M), C(C), H(H), N(N), layer{1, C, H, N, 16, H * N, is_first} {}

  // The bytes of the results for the tokens [begin, end).
  std::string outcome(int64_t begin, int64_t end, const cpu::Run& run) const {
    const int64_t n = end - begin;
    Floats own_mixed, state(layer.wkv.size()), shift(C), channel(C), values(first.begin() + begin * A, first.end());
    for (int64_t mix = 0; mix < kMixes7; ++mix)
      own_mixed.insert(own_mixed.end(), &mixed[(mix * M + begin) * C], &mixed[(mix * M + begin) * C] + n * C);
    const TimeMixing7Step step = layer.step(Slots(1, false), values, shift, state, channel).time;
    std::vector<Floats> out(6, Floats(n * A, NAN));
    const cpu::Rows7 rows{&key[begin * A], &value[begin * A], out[0].data(), out[1].data(), out[2].data(),
                          out[3].data(),   out[4].data(),     out[5].data(), values.data()};
    const cpu::Gates7 gates{C, A, step.w0, step.a0, step.v0, step.k_k, step.k_a, step.w, step.a, step.g, step.v};
    cpu::wkv7_inputs({n, N, gates, own_mixed.data(), rows}, run);
    Floats gated(n * A, NAN);
    cpu::wkv7_gated(
        {n, H, N, &r[begin * A], rows.k, rows.v, rows.gate, step.r_k, step.heads, &y[begin * A], gated.data()}, run);
    out.push_back(gated), values.resize(n * A), out.push_back(values);
    std::string bytes;
    for (const Floats& result : out)
      for (int64_t token : {int64_t{0}, n - 1}) bytes += bytes_of(Floats(&result[token * A], &result[token * A] + A));
    return bytes;
  }
};

template <class Low>
void test_prompt(int64_t M, int64_t C, int64_t H, int64_t N, bool is_first) {
  const Prompt<Low> prompt(M, C, H, N, is_first);
  const std::string expected = prompt.outcome(0, M, on_threads(1));
  for (int threads = 2; threads <= most_threads(); ++threads)
    CHECK(prompt.outcome(0, M, on_threads(threads)) == expected, threads, M, C, H, N, is_first);
  std::string alone;
  const std::string begin = prompt.outcome(0, 1, on_threads(1)), end = prompt.outcome(M - 1, M, on_threads(1));
  const size_t row = prompt.A * sizeof(float);
  for (size_t at = 0; at < begin.size(); at += 2 * row) alone += begin.substr(at, row) + end.substr(at, row);
  CHECK(alone == expected, M, C, H, N, is_first);
}

}  // namespace

int main() {
  test_prompt<float>(1, 17, 1, 8, false);
  test_prompt<float>(133, 40, 2, 20, true);
  test_prompt<Bfloat16>(81, 33, 1, 32, false);
  test_prompt<Float16>(66, 40, 1, 20, false);
  return failures();
}
