// CHECK(condition, values...): prints and counts failures; `return failures()` ends a test program.
#pragma once

#include <iostream>

inline int& failure_count() {
  static int count = 0;
  return count;
}

template <class... Values>
void check(bool ok, const char* condition, const char* file, int line, const Values&... values) {
  if (ok) return;
  ++failure_count();
  std::cerr << file << ":" << line << ": " << condition;
  ((std::cerr << " " << values), ...);
  std::cerr << "\n";
}

#define CHECK(condition, ...) check((condition), #condition, __FILE__, __LINE__, ##__VA_ARGS__)

inline int failures() {
  if (failure_count() == 0) std::cout << "ok\n";
  return failure_count() == 0 ? 0 : 1;
}
