// Makes a kernel do one wrong thing: faults address|undefined|thread. What checks the tests must report it, or its
// silence about them means nothing.
#include <iostream>
#include <string>
#include <vector>

#include "kernels/cpu/gates.h"
#include "threads.h"

using namespace rwkv;

int main(int, char** arguments) {
  const std::string fault = arguments[1];
  std::vector<float> k(64, 1.0f);
  if (fault == "address") {  // one number too many
    cpu::squared_relu(k.data(), 65, on_threads(1));
  } else if (fault == "undefined") {  // numbers where no number can begin
    cpu::squared_relu(reinterpret_cast<float*>(reinterpret_cast<char*>(k.data()) + 1), 63, on_threads(1));
  } else if (fault == "thread") {  // two threads, each with all of the work
    cpu::squared_relu(k.data(), 64, [](int64_t n, int64_t, const cpu::Range& fn) {
      on_threads(2)(2, 1, [n, &fn](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) fn(0, n);
      });
    });
  }
  std::cout << "nobody noticed: " << k[0] << "\n";
}
