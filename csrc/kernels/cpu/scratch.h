// Divides the caller's allocation among the buffers of a kernel. Torch-free.
#pragma once

#include <cstdint>

namespace rwkv::cpu {

// Returns buffers aligned to 64 bytes. Without an allocation it only computes the total size.
class Scratch {
 public:
  explicit Scratch(void* allocation) : next_(static_cast<char*>(allocation)) {}

  template <class T>
  T* take(int64_t n) {
    T* const piece = reinterpret_cast<T*>(next_ + used_);
    used_ += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* next_;
  int64_t used_ = 0;
};

}  // namespace rwkv::cpu
