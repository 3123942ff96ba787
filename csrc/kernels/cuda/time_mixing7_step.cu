// There are four kernels: all products of the mixes (time_mixing7_mixes.cuh), the second low-rank factors with the
// equations of single channels (time_mixing7_channels.cuh), the recurrence of each head (time_mixing7_head.cuh), and
// the output product (residual_product.h), which also replaces the shift row. Only one block uses the state of a head,
// so that is replaced where it is read.
#include "kernels/cuda/time_mixing7_step.h"

#include "kernels/cuda/residual_product.h"
#include "kernels/cuda/time_mixing7_channels.cuh"
#include "kernels/cuda/time_mixing7_head.cuh"
#include "kernels/cuda/time_mixing7_mixes.cuh"

namespace rwkv::cuda {
namespace {

struct Scratch {
  float *now, *gated;                                // (B, C), (B, A)
  Recurrent at;                                      // (B, A) each
  float *hidden_w, *hidden_a, *hidden_g, *hidden_v;  // (B, rank)
  int64_t bytes;

  Scratch(const TimeMixing7Step& step, void* allocation) {
    const int64_t C = step.C, A = step.A();
    int64_t used = 0;  // numbers
    const auto take = [&](float*& to, int64_t width) {
      to = allocation ? static_cast<float*>(allocation) + used : nullptr;
      used += step.B * width;
    };
    take(now, C);
    for (float** to : {&gated, &at.r, &at.w, &at.k, &at.v, &at.kappa, &at.a, &at.gate}) take(*to, A);
    take(hidden_w, step.w.first.N), take(hidden_a, step.a.first.N);
    take(hidden_g, step.g.first.N), take(hidden_v, step.v.first.N);
    bytes = used * static_cast<int64_t>(sizeof(float));
  }
};

}  // namespace

int64_t scratch_bytes(const TimeMixing7Step& step) { return Scratch(step, nullptr).bytes; }

cudaError_t time_mixing7_step(const TimeMixing7Step& step, void* scratch, cudaStream_t stream) {
  const Scratch to(step, scratch);
  const auto mix = [&](Mix7 which) { return step.mixes + static_cast<int>(which) * step.C; };
  const AllMixProducts products{{{step.receptance, mix(Mix7::r), to.at.r},
                                 {step.key, mix(Mix7::k), to.at.k},
                                 {step.value, mix(Mix7::v), to.at.v},
                                 {step.w.first, mix(Mix7::w), to.hidden_w, Activation::tanh},
                                 {step.a.first, mix(Mix7::a), to.hidden_a},
                                 {step.g.first, mix(Mix7::g), to.hidden_g, Activation::sigmoid},
                                 {step.v.first, mix(Mix7::v), to.hidden_v}}};
  const Factors factors{{step.w.second, step.a.second, step.g.second, step.v.second},
                        {to.hidden_w, to.hidden_a, to.hidden_g, to.hidden_v}};
  cudaError_t status = launch_mixes(step, products, to.now, stream);
  if (status == cudaSuccess) status = launch_channels(step, factors, to.at, stream);
  if (status == cudaSuccess) status = launch_head(step, to.at, to.gated, stream);
  if (status != cudaSuccess) return status;
  return residual_product(
      {step.B, step.output, step.x, to.gated, step.y, to.now, step.shift, step.shift_stride, step.slots}, stream);
}

}  // namespace rwkv::cuda
