// The RWKV-7 recurrence against its definition in double precision.
#include "kernels/cpu/wkv7.h"

#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "threads.h"

using namespace rwkv;

namespace {

template <class Real>
struct Problem {
  Wkv7Size size;
  std::vector<Real> r, w, k, v, kappa, a, state;

  explicit Problem(Wkv7Size s) : size(s) {
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> decay(0.545, 1), rate(0, 1);
    const int64_t n = s.B * s.T * s.H * s.N;
    for (int64_t i = 0; i < n; ++i) {
      for (auto* to : {&r, &k, &v}) to->push_back(static_cast<Real>(normal(random)));
      kappa.push_back(static_cast<Real>(normal(random) / std::sqrt(double(s.N))));
      w.push_back(static_cast<Real>(decay(random)));
      a.push_back(static_cast<Real>(rate(random)));
    }
    for (int64_t i = 0; i < s.B * s.H * s.N * s.N; ++i) state.push_back(static_cast<Real>(normal(random)));
  }
};

template <class Real>
struct Result {
  std::vector<Real> y, state;
};

template <class Real>
Result<Real> run(const Problem<Real>& p, const cpu::Run& threads) {
  const Real poison = std::nan("");
  Result<Real> result{std::vector<Real>(p.r.size(), poison), std::vector<Real>(p.state.size(), poison)};
  cpu::wkv7<Real>(p.size, {p.r.data(), p.w.data(), p.k.data(), p.v.data(), p.kappa.data(), p.a.data(), p.state.data()},
                  {result.y.data(), result.state.data()}, threads);
  return result;
}

template <class Real>
void it_is_the_definition(Wkv7Size size, double tolerance) {
  const Problem<Real> p(size);
  const auto got = run(p, on_threads(2));
  const auto [B, T, H, N] = size;
  for (int64_t head = 0; head < B * H; ++head) {
    std::vector<double> S(p.state.begin() + head * N * N, p.state.begin() + (head + 1) * N * N);
    for (int64_t t = 0; t < T; ++t) {
      const int64_t at = ((head / H * T + t) * H + head % H) * N;
      for (int64_t i = 0; i < N; ++i) {
        double removed = 0, y = 0;
        for (int64_t j = 0; j < N; ++j) removed += S[i * N + j] * p.kappa[at + j];
        for (int64_t j = 0; j < N; ++j) {
          double& s = S[i * N + j];
          s = s * p.w[at + j] - removed * p.kappa[at + j] * p.a[at + j] + double(p.v[at + i]) * p.k[at + j];
          y += s * p.r[at + j];
        }
        CHECK(std::abs(got.y[at + i] - y) < tolerance * (N + std::abs(y)), got.y[at + i], y);
      }
    }
    for (int64_t i = 0; i < N * N; ++i) {
      const double s = got.state[head * N * N + i];
      CHECK(std::abs(s - S[i]) < tolerance * (N + std::abs(S[i])), s, S[i]);
    }
  }
}

template <class Real>
void threads_change_no_bit(Wkv7Size size) {
  const Problem<Real> p(size);
  check_same_bits([&](const cpu::Run& threads) {
    const auto r = run(p, threads);
    return bytes_of(r.y, r.state);
  });
}

}  // namespace

int main() {
  for (const Wkv7Size size : {Wkv7Size{1, 1, 1, 1}, {2, 5, 3, 16}, {3, 33, 2, 19}, {1, 2, 2, 64}}) {
    it_is_the_definition<float>(size, 1e-5);
    it_is_the_definition<double>(size, 1e-13);
  }
  for (const Wkv7Size size : {Wkv7Size{1, 3, 1, 1}, {2, 9, 2, 33}}) {
    threads_change_no_bit<float>(size);
    threads_change_no_bit<double>(size);
  }
  return failures();
}
