// Regions of several callers at once, for ThreadSanitizer, too: many short ones of changing teams,
// in each of which every piece has to be worked on once before the region ends. Its counts lie on
// the caller's stack, where a thread that comes late must not look.
#include <cstddef>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "threads.hpp"

namespace schuss {
namespace {

constexpr int most = 40;

// How many pieces of a region have been worked on once.
template <class Inside> int done_once(division into, const Inside& inside) {
  int done[most] = {}, sum = 0;
  parallel_for(into, [&](int piece) {
    inside();
    done[piece] += piece + 1;
  });
  for (int piece = 0; piece < into.pieces; ++piece) sum += done[piece] == piece + 1;
  return sum;
}

void call_often(int caller) {
  constexpr int regions = 10000;
  for (int n = 0; n < regions; ++n) {
    const division into{1 + n % 4, 1 + (n * 7 + caller) % most};
    const int done = done_once(into, [] {});
    if (!CHECK_SAYING(done == into.pieces, "caller " + std::to_string(caller) + ", region " +
                                               std::to_string(n) + ": " + std::to_string(done)))
      return;
  }
}

void test_callers() {
  for (const int callers : {1, 3}) {
    std::vector<std::thread> threads;
    for (int caller = 0; caller < callers; ++caller) threads.emplace_back(call_often, caller);
    for (std::thread& thread : threads) thread.join();
  }
  CHECK(widest_region() == 4);
}

// A region within a region works alone.
void test_within() {
  const division into{3, most};
  CHECK(done_once(into, [&] { CHECK(done_once(into, [] {}) == most); }) == most);
}

}  // namespace

void test_crew() {
  widest_region();
  test_callers();
  test_within();
}

}  // namespace schuss
