// One step of the RWKV-4 recurrence for one channel, forward and backward. Torch-free; host and device.
//
// The state (num, den, max) represents the two sums
//   A = num e^max = sum_i e^(w (t-1-i) + k_i) v_i        B = den e^max = sum_i e^(w (t-1-i) + k_i)
// kept relative to their largest exponent so that no exponential overflows. w = decay = -exp(time_decay), u = first.
#pragma once

#include "kernels/math.h"

namespace rwkv {

template <class Real>
struct Wkv4State {
  Real num, den, max;
};

// wkv_t = (A + e^(u + k) v) / (B + e^(u + k))
template <class Real>
RWKV_HOST_DEVICE inline Real wkv4_output(Real first, Real k, Real v, Wkv4State<Real> s) {
  const Real bonus = first + k;
  const Real q = s.max > bonus ? s.max : bonus;
  const Real e1 = exp_nonpositive(s.max - q);
  const Real e2 = exp_nonpositive(bonus - q);
  return (e1 * s.num + e2 * v) / (e1 * s.den + e2);
}

// A <- e^w A + e^k v;  B <- e^w B + e^k
template <class Real>
RWKV_HOST_DEVICE inline Wkv4State<Real> wkv4_update(Real decay, Real k, Real v, Wkv4State<Real> s) {
  const Real decayed = s.max + decay;
  const Real q = decayed > k ? decayed : k;
  const Real e1 = exp_nonpositive(decayed - q);
  const Real e2 = exp_nonpositive(k - q);
  return {e1 * s.num + e2 * v, e1 * s.den + e2, q};
}

template <class Real>
struct Wkv4Grad {
  Real decay, first, k, v;
  Wkv4State<Real> state;  // with respect to the state before the step
};

// Derivatives of wkv4_output and wkv4_update together. `grad` is the gradient with respect to the state after the step.
// The output does not depend on q, which scales numerator and denominator equally, so only the update is differentiated
// through its maximum; at a tie the gradient is halved, as in torch.maximum.
template <class Real>
RWKV_HOST_DEVICE inline Wkv4Grad<Real> wkv4_step_backward(Real decay, Real first, Real k, Real v, Wkv4State<Real> s,
                                                          Real grad_y, Wkv4State<Real> grad) {
  const Real bonus = first + k;
  const Real q = s.max > bonus ? s.max : bonus;
  const Real e1 = exp_nonpositive(s.max - q);
  const Real e2 = exp_nonpositive(bonus - q);
  const Real inverse = Real(1) / (e1 * s.den + e2);
  const Real y = (e1 * s.num + e2 * v) * inverse;
  const Real g = grad_y * inverse;  // d loss / d numerator
  const Real grad_bonus = g * (v - y) * e2;

  const Real decayed = s.max + decay;
  const Real p = decayed > k ? decayed : k;
  const Real f1 = exp_nonpositive(decayed - p);
  const Real f2 = exp_nonpositive(k - p);
  const Real from_f1 = (grad.num * s.num + grad.den * s.den) * f1;
  const Real from_f2 = (grad.num * v + grad.den) * f2;
  const Real from_p = grad.max - from_f1 - from_f2;
  const Real share = decayed > k ? Real(1) : (decayed < k ? Real(0) : Real(0.5));
  const Real grad_decayed = from_f1 + share * from_p;

  Wkv4Grad<Real> out;
  out.decay = grad_decayed;
  out.first = grad_bonus;
  out.k = grad_bonus + from_f2 + (Real(1) - share) * from_p;
  out.v = g * e2 + grad.num * f2;
  out.state.num = g * e1 + grad.num * f1;
  out.state.den = -g * y * e1 + grad.den * f1;
  out.state.max = g * (s.num - y * s.den) * e1 + grad_decayed;
  return out;
}

}  // namespace rwkv
