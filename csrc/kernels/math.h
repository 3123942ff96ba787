// Scalar functions shared by every kernel. Torch-free; compiled by g++ and nvcc.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define RWKV_HOST_DEVICE __host__ __device__
#else
#define RWKV_HOST_DEVICE
#endif

namespace rwkv {

// e^x for x <= 0, the only exponential a max-stabilised recurrence needs. Below the range of normal numbers the result
// is exactly 0, NaN stays NaN. Written without branches or library calls so that a loop over channels vectorises.
//
// e^x = 2^n e^r with n = round(x / ln 2) and |r| <= ln(2)/2; e^r = 1 + r + r^2 p(r), p a minimax polynomial (the
// coefficients of the Cephes library, Moshier). Error below 1 ulp, see tests/cpp/test_math.cpp.
RWKV_HOST_DEVICE inline float exp_nonpositive(float x) {
  constexpr float kLowest = -87.0f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low mantissa bits
  const float clamped = x < kLowest ? kLowest : x;
  const float shifted = clamped * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float mantissa = 1.0f + (r + r * r * p);
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return x < kLowest ? 0.0f : mantissa * scale;
}

// The same for double. e^r is its Taylor polynomial of degree 13, whose remainder is below 2^-57. Error below 1 ulp.
RWKV_HOST_DEVICE inline double exp_nonpositive(double x) {
  constexpr double kLowest = -708.0;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const double clamped = x < kLowest ? kLowest : x;
  const double shifted = clamped * 1.4426950408889634 + kRound;
  const double n = shifted - kRound;
  const double r = (clamped - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;  // ln 2 in two parts
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  const double mantissa = 1.0 + (r + r * r * p);
  uint64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 1023) << 52;
  double scale;
  memcpy(&scale, &bits, sizeof scale);
  return x < kLowest ? 0.0 : mantissa * scale;
}

// 1 / (1 + e^-x), without an exponential that could overflow.
RWKV_HOST_DEVICE inline float sigmoid(float x) {
  const float e = exp_nonpositive(x < 0 ? x : -x);
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

// tanh x, without branches. Below 0.625 it is an odd polynomial (the coefficients of Cephes, as above), because the
// difference of exponentials would lose the digits of small numbers. Error below 2 ulp, see tests/cpp/test_math.cpp.
RWKV_HOST_DEVICE inline float hyperbolic_tangent(float x) {
  const float square = x * x, size = x < 0 ? -x : x;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const float small = x + x * square * p;
  const float e = exp_nonpositive(-2 * size), large = (1.0f - e) / (1.0f + e);
  return size < 0.625f ? small : (x < 0 ? -large : large);
}

}  // namespace rwkv
