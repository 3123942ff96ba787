// How a kernel asks its caller for threads: kernels know no thread pool, bindings hand them torch's own.
#pragma once

#include <cstdint>
#include <functional>

namespace rwkv::cpu {

using Range = std::function<void(int64_t begin, int64_t end)>;
// run(n, work, fn) calls fn on disjoint ranges that cover [0, n), on any threads, and returns when all are done. Each
// of the n units takes about as long as `work` multiply-adds of a matrix product, by which the caller decides whether
// more than one thread is worth it. A kernel's bits may not depend on the ranges.
using Run = std::function<void(int64_t n, int64_t work, const Range& fn)>;

}  // namespace rwkv::cpu
