// How kernels run loops on threads: they have no thread pool of their own, and bindings pass them that of torch.
#pragma once

#include <cstdint>
#include <functional>

namespace rwkv::cpu {

using Range = std::function<void(int64_t begin, int64_t end)>;
// run(n, work, fn) calls fn on disjoint ranges that cover [0, n), on any threads, and returns when all are done. Each
// of the n units takes about as long as `work` multiply-adds of a matrix product; `run` uses one thread if the total is
// small. The results of a kernel must not depend on the ranges.
using Run = std::function<void(int64_t n, int64_t work, const Range& fn)>;

}  // namespace rwkv::cpu
