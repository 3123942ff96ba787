#include "kernels/math.h"

#include <cmath>
#include <limits>

#include "check.h"

int main() {
  // Every 97th float from -0 down to the cut-off, against double precision.
  double worst = 0;
  for (uint32_t bits = 0x80000000u; bits < 0xc2ae0000u; bits += 97) {
    float x;
    memcpy(&x, &bits, sizeof x);
    const double exact = std::exp(static_cast<double>(x));
    const double ulp = std::abs(std::nextafter(static_cast<float>(exact), 2.0f) - static_cast<float>(exact));
    worst = std::max(worst, std::abs(rwkv::exp_nonpositive(x) - exact) / ulp);
  }
  std::cout << "exp_nonpositive: at most " << worst << " ulp\n";
  CHECK(worst < 1.0, worst);

  double worst_double = 0;
  for (double x = -1e-9; x > -708; x *= 1.0003) {
    const long double exact = std::exp(static_cast<long double>(x));
    const auto nearest = static_cast<double>(exact);
    const double ulp = std::nextafter(nearest, 2.0) - nearest;
    worst_double = std::max(worst_double, static_cast<double>(std::abs(rwkv::exp_nonpositive(x) - exact) / ulp));
  }
  CHECK(worst_double < 1.0, worst_double);
  CHECK(rwkv::exp_nonpositive(0.0) == 1.0);
  CHECK(rwkv::exp_nonpositive(-709.0) == 0.0);
  CHECK(rwkv::exp_nonpositive(-std::numeric_limits<double>::infinity()) == 0.0);
  CHECK(std::isnan(rwkv::exp_nonpositive(std::numeric_limits<double>::quiet_NaN())));

  double worst_tanh = 0;
  for (uint32_t bits = 0x30000000u; bits < 0x42000000u; bits += 97) {
    float x;
    memcpy(&x, &bits, sizeof x);
    const double exact = std::tanh(static_cast<double>(x));
    const float nearest = static_cast<float>(exact);
    const double ulp = nearest - std::nextafter(nearest, 0.0f);
    worst_tanh = std::max(worst_tanh, std::abs(rwkv::hyperbolic_tangent(x) - exact) / ulp);
    CHECK(rwkv::hyperbolic_tangent(-x) == -rwkv::hyperbolic_tangent(x), x);
  }
  std::cout << "hyperbolic_tangent: at most " << worst_tanh << " ulp\n";
  CHECK(worst_tanh < 2.0, worst_tanh);
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(rwkv::hyperbolic_tangent(infinity) == 1.0f && rwkv::hyperbolic_tangent(-infinity) == -1.0f);
  CHECK(rwkv::hyperbolic_tangent(0.0f) == 0.0f);
  CHECK(std::isnan(rwkv::hyperbolic_tangent(std::numeric_limits<float>::quiet_NaN())));

  CHECK(rwkv::exp_nonpositive(0.0f) == 1.0f);
  CHECK(rwkv::exp_nonpositive(-0.0f) == 1.0f);
  CHECK(rwkv::exp_nonpositive(-88.0f) == 0.0f);
  CHECK(rwkv::exp_nonpositive(-1e30f) == 0.0f);
  CHECK(rwkv::exp_nonpositive(-std::numeric_limits<float>::infinity()) == 0.0f);
  CHECK(std::isnan(rwkv::exp_nonpositive(std::numeric_limits<float>::quiet_NaN())));
  return failures();
}
