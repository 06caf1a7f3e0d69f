// Prints the nanoseconds of a division and of a root, as fast as the processor takes them one after
// another: bench/rules.py compiles it with the flags of an instruction set.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>

namespace {

constexpr int n = 1024;  // floats in the L1 cache: enough under way at a time
float x[n];

template <class Operation> double nanoseconds(const Operation& operation) {
  double best = std::numeric_limits<double>::infinity();
  for (int turn = 0; turn < 200; ++turn) {
    const auto start = std::chrono::steady_clock::now();
    for (int repeat = 0; repeat < 20; ++repeat)
      for (int i = 0; i < n; ++i) x[i] = operation(x[i]);
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count() / (20 * n));
  }
  return best;
}

}  // namespace

int main() {
  std::fill_n(x, n, 1.7f);
  std::printf("%f\n", nanoseconds([](float a) { return 3.0f / a; }));
  std::printf("%f\n", nanoseconds([](float a) { return std::sqrt(a); }));
}
