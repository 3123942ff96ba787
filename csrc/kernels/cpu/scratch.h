// Memory that kernels compute in: the caller's allocation, and memory of each thread. Torch-free.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <tuple>
#include <utility>

namespace rwkv::cpu {

constexpr int64_t kScratchAlignment = 64;

// Divides an allocation among buffers aligned to 64 bytes. Without an allocation it only computes the total size.
class Scratch {
 public:
  explicit Scratch(void* allocation) : next_(static_cast<char*>(allocation)) {}

  template <class T>
  T* take(int64_t n) {
    T* const piece = reinterpret_cast<T*>(next_ + used_);
    used_ += (n * static_cast<int64_t>(sizeof(T)) + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* next_;
  int64_t used_ = 0;
};

// At least `size` bytes that belong to the calling thread, which keeps them until it ends; the contents are undefined.
inline void* thread_memory(int64_t size) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t held = 0;
  if (size > held) {
    held = 0;
    memory.reset();
    memory.reset(std::aligned_alloc(kScratchAlignment, size));
    if (!memory) throw std::bad_alloc();
    held = size;
  }
  return memory.get();
}

// Buffers of these types and lengths for the body of a loop, without an allocation once the thread has made one as
// large. A later call in the same thread returns the same memory, so a body calls it once, and calls nothing that does.
template <class... T, class... Length>
std::tuple<T*...> thread_buffers(Length... lengths) {
  const auto divided = [&](void* allocation) {
    Scratch scratch(allocation);
    const std::tuple<T*...> buffers{scratch.take<T>(lengths)...};
    return std::pair{buffers, scratch.used()};
  };
  return divided(thread_memory(divided(nullptr).second)).first;
}

}  // namespace rwkv::cpu
