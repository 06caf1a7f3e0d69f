// Regions without Python, for ThreadSanitizer: several callers open many short regions of changing
// teams, and in each of them every piece has to be worked on once, before the region ends. Its
// counts lie on the caller's stack, where a thread that comes late must not look.
//
// The target `crew` of CMakeLists.txt, built only when asked for.
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <thread>
#include <vector>

#include "threads.hpp"

namespace {

constexpr int regions = 20000, most = 40;

void call_often(int caller) {
  schuss::set_threads_here(2 + caller);
  for (int n = 0; n < regions; ++n) {
    int done[most] = {}, sum = 0;
    const schuss::division into{1 + n % 4, 1 + (n * 7 + caller) % most};
    schuss::parallel_for(into, [&](int piece) { done[piece] += piece + 1; });
    for (int piece = 0; piece < into.pieces; ++piece) sum += done[piece] == piece + 1;
    if (sum == into.pieces) continue;
    std::printf("caller %d, region %d: %d of %d pieces\n", caller, n, sum, into.pieces);
    std::exit(1);
  }
}

}  // namespace

int main() {
  for (const int callers : {1, 3}) {
    std::vector<std::thread> threads;
    for (int caller = 0; caller < callers; ++caller) threads.emplace_back(call_often, caller);
    for (std::thread& thread : threads) thread.join();
  }
  std::printf("widest region: %d\n", schuss::widest_region());
}
