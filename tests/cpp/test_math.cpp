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

  CHECK(rwkv::exp_nonpositive(0.0f) == 1.0f);
  CHECK(rwkv::exp_nonpositive(-0.0f) == 1.0f);
  CHECK(rwkv::exp_nonpositive(-88.0f) == 0.0f);
  CHECK(rwkv::exp_nonpositive(-1e30f) == 0.0f);
  CHECK(rwkv::exp_nonpositive(-std::numeric_limits<float>::infinity()) == 0.0f);
  CHECK(std::isnan(rwkv::exp_nonpositive(std::numeric_limits<float>::quiet_NaN())));
  return failures();
}
