// There are two kernels. Blocks of the first compute the weights of some tokens of a row each, exponentials in float64,
// which most GPUs compute slowly. A block of the second chooses the token of a row. It sorts nothing: the last token
// that top-k or top-p keeps is found by the digits of its weight, with the sums of the weights that have each digit.
#include "kernels/cuda/draw_tokens.h"

#include <cmath>
#include <type_traits>

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/block_scan.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / kWarp;
constexpr int64_t kPiece = 2048;  // tokens of a block of the first kernel
constexpr int64_t kToDraw = -3;   // the id of a row that the second kernel is to draw

template <class Logit>
constexpr Logit kInfinity = INFINITY;

// A logit and its token. A logit that is not as `DrawTokens` says becomes NaN, which wins over every other.
template <class Logit>
struct Candidate {
  Logit logit;
  int64_t id;

  __device__ bool loses_to(const Candidate& other) const {
    if (other.logit != other.logit) return true;
    return other.logit > logit || (other.logit == logit && other.id < id);
  }
};

// The first of the largest logits of a row, for all threads, among the tokens that the mask allows; its logit is NaN if
// the row is not sound, and -inf if nothing is left.
template <class Logit>
__device__ Candidate<Logit> first_of_largest(const Logit* row, const int32_t* mask, int64_t V) {
  constexpr Logit kNan = NAN;
  __shared__ Logit logits[kWarps];
  __shared__ int64_t ids[kWarps];
  Candidate<Logit> best{-kInfinity<Logit>, V};
#pragma unroll 8
  for (int64_t i = thread(); i < V; i += kThreads) {
    const Logit logit = row[i];
    const bool is_sound = logit < kInfinity<Logit> && (std::is_same_v<Logit, double> || logit > -kInfinity<Logit>);
    const Candidate<Logit> other{!is_sound ? kNan : allows(mask, i) ? logit : -kInfinity<Logit>, i};
    if (best.loses_to(other)) best = other;
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Candidate<Logit> other{__shfl_xor_sync(kAllLanes, best.logit, distance),
                                 __shfl_xor_sync(kAllLanes, best.id, distance)};
    if (best.loses_to(other)) best = other;
  }
  if (lane() == 0) logits[warp()] = best.logit, ids[warp()] = best.id;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w)
    if (best.loses_to({logits[w], ids[w]})) best = {logits[w], ids[w]};
  return best;
}

// The weights of a row as the second kernel reads them: thread t has `each` tokens from t * each on, and numbers of
// adjacent threads are adjacent.
struct Layout {
  int64_t V, each;

  __host__ __device__ explicit Layout(int64_t V) : V(V), each((V + kThreads - 1) / kThreads) {}
  __host__ __device__ int64_t numbers() const { return each * kThreads; }
  __device__ int64_t place(int64_t id) const { return id % each * kThreads + id / each; }
};

// One block a multiprocessor is enough: for two, registers would be spilled.
template <class Logit>
__global__ void __launch_bounds__(kThreads, 1) weigh_kernel(DrawTokens<Logit> draw, double* weights) {
  const int64_t b = blockIdx.x, begin = static_cast<int64_t>(blockIdx.y) * kPiece;
  const Logit* const row = draw.logits + b * draw.V;
  const int32_t* const mask = draw.mask(b);
  const Layout layout(draw.V);
  const auto [largest, first] = first_of_largest(row, mask, draw.V);
  const double temperature = draw.temperatures[b];
  const bool is_found = largest > -kInfinity<Logit>, draws = is_found && temperature != 0;
  const int64_t none = draw.allowed && largest == largest ? kNoneAllowed : -1;
  if (blockIdx.y == 0 && thread() == 0) draw.ids[b] = draws ? kToDraw : is_found ? first : none;
  if (!draws) return;
  const auto subtracted = static_cast<double>(largest);
  const double scale = reciprocal(temperature);
  for (int64_t i = begin + thread(); i < begin + kPiece && i < draw.V; i += kThreads)
    weights[b * layout.numbers() + layout.place(i)] =
        allows(mask, i) ? exp_nonpositive((row[i] - subtracted) * scale) : 0;
}

// Digits of the weights in [2^-46, 1], whose bits, less those of 2^-46, are a number of 58 bits: four digits of 12 bits
// and one of 10.
constexpr int kDigitBits = 12, kDigits = 5, kBits = 58;
constexpr int kBins = 1 << kDigitBits;

struct Shared {
  unsigned long long bins[kBins];  // the sums of the weights with each digit
  int64_t totals[kWarps];
  int64_t found, before;
};

// One row, as a block sees it.
struct Row {
  const double* weights;
  Layout layout;
  Shared& shared;

  // Calls fn(id, weight) for this thread's tokens, in order.
  template <class Function>
  __device__ void each(const Function& fn) const {
    const int64_t first = thread() * layout.each;
#pragma unroll 8
    for (int64_t i = 0; i < layout.each; ++i)
      if (first + i < layout.V) fn(first + i, weights[i * kThreads + thread()]);
  }

  // The first token at which reached(sum of the measures up to it, sum of all) is true, in the order of ids; there must
  // be one.
  template <class Measure, class Reached>
  __device__ int64_t first_at(const Measure& measure, const Reached& reached) const {
    int64_t mine = 0;
    each([&](int64_t id, double weight) { mine += measure(id, weight); });
    const auto [before, all] = block_scan<kWarps>(mine, shared.totals);
    if (!reached(before, all) && reached(before + mine, all)) {
      int64_t sum = before, found = -1;
      each([&](int64_t id, double weight) {
        sum += measure(id, weight);
        if (found < 0 && reached(sum, all)) found = id;
      });
      shared.found = found;
    }
    __syncthreads();
    return shared.found;
  }

  // The last token before which the measures sum to less than target(their sum over all tokens), which is positive, in
  // the order of places. The measure of a token is an integer >= 0; it counts from kLeast on, and is the same for
  // tokens of the same weight where it is not 0.
  template <class Target, class Measure>
  __device__ Place last_place(const Target& target_of, const Measure& measure) const {
    int64_t prefix = 0, before = 0;  // of the weight that is looked for, and the sum of larger ones
    double target = 0;
    for (int digit = 0; digit < kDigits; ++digit) {
      const int end = kBits - digit * kDigitBits, begin = end > kDigitBits ? end - kDigitBits : 0;
      for (int bin = thread(); bin < kBins; bin += kThreads) shared.bins[bin] = 0;
      __syncthreads();
      each([&](int64_t id, double weight) {
        const int64_t key = bits_of(weight) - bits_of(kLeast);
        if (weight < kLeast || key >> end != prefix) return;
        if (const int64_t number = measure(id, weight))
          atomicAdd(&shared.bins[key >> begin & ((1 << (end - begin)) - 1)], static_cast<unsigned long long>(number));
      });
      __syncthreads();
      constexpr int kMine = kBins / kThreads;  // the thread's bins, the largest digits first
      int64_t sums[kMine], mine = 0;
#pragma unroll
      for (int i = 0; i < kMine; ++i)
        mine += sums[i] = static_cast<int64_t>(shared.bins[kBins - 1 - thread() * kMine - i]);
      const auto [smaller, all] = block_scan<kWarps>(mine, shared.totals);
      if (digit == 0) target = fmin(target_of(all), static_cast<double>(all));
      int64_t sum = before + smaller;
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        if (static_cast<double>(sum) < target && !(static_cast<double>(sum + sums[i]) < target))
          shared.found = kBins - 1 - thread() * kMine - i, shared.before = sum;
        sum += sums[i];
      }
      __syncthreads();
      prefix = prefix << (end - begin) | shared.found, before = shared.before;
    }
    const int64_t bits = prefix + bits_of(kLeast);
    double weight;
    memcpy(&weight, &bits, sizeof weight);
    const auto equal = [&](int64_t id, double of_token) { return of_token == weight ? measure(id, weight) : 0; };
    const auto reached = [&](int64_t sum, int64_t) { return !(static_cast<double>(before + sum) < target); };
    return {weight, first_at(equal, reached)};
  }
};

template <class Logit>
__global__ void __launch_bounds__(kThreads) choose_kernel(DrawTokens<Logit> draw, const double* weights) {
  __shared__ Shared shared;
  const int64_t b = blockIdx.x, V = draw.V, top_k = draw.top_k[b];
  if (draw.ids[b] != kToDraw) return;
  const Layout layout(V);
  const Row row{weights + b * layout.numbers(), layout, shared};
  const double top_p = draw.top_p[b], min_p = draw.min_p[b], fraction = draw.fraction(b);

  const Place all{-1, V};
  Place of_k = all, of_p = all;
  if (0 < top_k && top_k < V)
    of_k =
        row.last_place([=](int64_t) { return static_cast<double>(top_k); }, [](int64_t, double) { return int64_t{1}; });
  const auto whole = [=](int64_t id, double weight) { return of_k.includes(weight, id) ? whole_number(weight) : 0; };
  if (top_p < 1) of_p = row.last_place([=](int64_t sum) { return top_p * static_cast<double>(sum); }, whole);
  const int64_t id = row.first_at(
      [=](int64_t id, double weight) { return weight >= min_p && of_p.includes(weight, id) ? whole(id, weight) : 0; },
      [=](int64_t sum, int64_t total) {
        // A product may be rounded up to the total itself, which no sum exceeds.
        const auto target = static_cast<int64_t>(fraction * static_cast<double>(total));
        return sum > (target < total ? target : total - 1);
      });
  if (thread() == 0) draw.ids[b] = id;
}

template <class Logit>
__global__ void __launch_bounds__(kThreads) most_likely_kernel(const Logit* logits, int64_t V, int64_t* ids) {
  const auto [largest, first] = first_of_largest<Logit>(logits + blockIdx.x * V, nullptr, V);
  if (thread() == 0) ids[blockIdx.x] = largest > -kInfinity<Logit> ? first : -1;
}

}  // namespace

int64_t draw_scratch_numbers(int64_t B, int64_t V) { return B * Layout(V).numbers(); }

template <class Logit>
cudaError_t draw_tokens(const DrawTokens<Logit>& draw, double* scratch, cudaStream_t stream) {
  const cudaError_t status =
      launch(&weigh_kernel<Logit>, grid_of(draw.B, pieces(draw.V, kPiece)), kThreads, 0, stream, draw, scratch);
  if (status != cudaSuccess) return status;
  return launch(&choose_kernel<Logit>, grid_of(draw.B), kThreads, 0, stream, draw, scratch);
}

template <class Logit>
cudaError_t most_likely(const Logit* logits, int64_t B, int64_t V, int64_t* ids, cudaStream_t stream) {
  return launch(&most_likely_kernel<Logit>, grid_of(B), kThreads, 0, stream, logits, V, ids);
}

template cudaError_t draw_tokens(const DrawTokens<float>&, double*, cudaStream_t);
template cudaError_t draw_tokens(const DrawTokens<double>&, double*, cudaStream_t);
template cudaError_t most_likely(const float*, int64_t, int64_t, int64_t*, cudaStream_t);
template cudaError_t most_likely(const double*, int64_t, int64_t, int64_t*, cudaStream_t);

}  // namespace rwkv::cuda
