// How a kernel asks its caller for threads: kernels know no thread pool, bindings hand them torch's own.
#pragma once

#include <cstdint>
#include <functional>

namespace rwkv::cpu {

using Range = std::function<void(int64_t begin, int64_t end)>;
// run(n, fn) calls fn on disjoint ranges that cover [0, n), on any threads, and returns when all are done.
using Run = std::function<void(int64_t n, const Range& fn)>;

}  // namespace rwkv::cpu
