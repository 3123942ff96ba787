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

RWKV_HOST_DEVICE inline double exp_nonpositive(double x) { return exp(x); }

// 1 / (1 + e^-x), without an exponential that could overflow.
RWKV_HOST_DEVICE inline float sigmoid(float x) {
  const float e = exp_nonpositive(x < 0 ? x : -x);
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

}  // namespace rwkv
