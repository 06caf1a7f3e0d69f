// How the driver cuts arrays into pieces and puts neighbours together, without a byte of memory: a
// table whose kernels only say which elements they were given, and spans of up to 2^62 bytes that
// lie nowhere.
#include <algorithm>
#include <cstddef>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "check.hpp"
#include "driver.hpp"
#include "threads.hpp"

namespace schuss {
namespace {

using parts = std::vector<std::pair<std::ptrdiff_t, std::ptrdiff_t>>;

std::mutex writing;
std::map<const span*, parts> given;  // to kernels, of each span

void note(const span* a, const span* end, std::ptrdiff_t first, std::ptrdiff_t last,
          const scalars&) {
  const std::lock_guard<std::mutex> held(writing);
  for (; a != end; ++a, first = 0) {
    const std::ptrdiff_t until = a + 1 == end ? last : a->size;
    if (first < until) given[a].emplace_back(first, until);
  }
}

constexpr rule noted[] = {{"noted", 0, 0, nullptr, false, note, note, nullptr, nullptr}};
constexpr table notes = {"notes", noted, 1, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};

span nowhere(std::ptrdiff_t size, std::ptrdiff_t row_size, std::ptrdiff_t width) {
  span a{};
  a.x.kind = kind::float32;
  a.size = size;
  a.row_size = row_size;
  a.width = width;
  return a;
}

// Whether the parts are all of a span's elements once, and only cut where threads may.
bool whole(const span& a, parts of) {
  std::sort(of.begin(), of.end());
  std::ptrdiff_t next = 0;
  for (const auto& [first, last] : of) {
    if (first != next || last > a.size) return false;
    if (first % a.row_size % chunk != 0) return false;
    next = last;
  }
  return next == a.size;
}

void stepped_once(const std::vector<span>& spans) {
  const std::vector<scalars> sets(1);
  for (const int team : {1, 2, 5}) {
    set_threads_here(team);
    given.clear();
    run(notes, spans, sets);
    for (const span& a : spans) CHECK(whole(a, given[&a]));
  }
  set_threads_here(0);
}

void test_cut() {
  constexpr std::ptrdiff_t most = std::ptrdiff_t{1} << 62;
  for (const std::ptrdiff_t total : {std::ptrdiff_t{0}, std::ptrdiff_t{1}, chunk, most - 1, most})
    for (const int pieces : {1, 2, 3, 1000, most_pieces}) {
      CHECK(cut(total, 0, pieces) == 0);
      CHECK(cut(total, pieces, pieces) == total);
      for (int piece = 0; piece < pieces; ++piece) {
        const std::ptrdiff_t size = cut(total, piece + 1, pieces) - cut(total, piece, pieces);
        CHECK(size == total / pieces || size == total / pieces + 1);
      }
    }
}

void test_edge() {
  constexpr std::ptrdiff_t sizes[] = {1, chunk - 1, chunk, 10 * chunk + 1, std::ptrdiff_t{1} << 57};
  for (const std::ptrdiff_t size : sizes)
    for (const std::ptrdiff_t rows : {1, 2})
      for (const std::ptrdiff_t width : {1, 6, 16}) {
        const std::ptrdiff_t all = rows * size, bytes = all * width;
        CHECK(edge(all, size, width, -1) == 0);
        CHECK(edge(all, size, width, bytes) == all);
        for (const std::ptrdiff_t target : {std::ptrdiff_t{1}, bytes / 3, bytes / 2, bytes - 1}) {
          const std::ptrdiff_t at = edge(all, size, width, target);
          CHECK(0 <= at && at * width <= target && target - at * width < (chunk + 1) * width);
          CHECK(at % size % chunk == 0);
        }
      }
}

// What lies side by side in every stream steps as one; its addresses are made up.
void test_join() {
  const auto at = [](std::ptrdiff_t first, std::ptrdiff_t size) {
    span a = nowhere(size, size, 8);
    a.x = {reinterpret_cast<void*>(0x10000 + 4 * first), kind::float32, 4};
    a.g = {reinterpret_cast<void*>(0x20000 + 4 * first), kind::float32, 4};
    a.position = first;
    return a;
  };
  const span a = at(0, 5), b = at(5, 3), apart = at(100, 3);
  std::vector<span> joined;
  CHECK(join({a, b, at(8, 64), apart}, joined));
  CHECK(joined.size() == 2 && joined[0].size == 72 && joined[0].row_size == 72);
  CHECK(joined[1].x.data == apart.x.data && joined[1].size == 3);

  span of_another_set = b, elsewhere = b, further_on = b;
  of_another_set.set = 1;
  elsewhere.g = apart.g;
  further_on.position = 6;
  for (const span& other : {apart, of_another_set, elsewhere, further_on})
    CHECK(!join({a, other}, joined));
  CHECK(!join({b, a}, joined));
}

}  // namespace

void test_partition() {
  const std::ptrdiff_t grain = set_grain(1);
  test_cut();
  test_edge();
  test_join();
  for (const std::ptrdiff_t width : {1, 14, 36}) {
    stepped_once({});
    stepped_once({nowhere(0, 1, width)});
    stepped_once({nowhere(1, 1, width)});
    stepped_once({nowhere(chunk, chunk, width), nowhere(0, 1, width), nowhere(1, 1, width),
                  nowhere(5 * chunk + 3, 5 * chunk + 3, width), nowhere(7000, 70, width)});
    stepped_once(std::vector<span>(3000, nowhere(13, 13, width)));
    const std::ptrdiff_t huge = (std::ptrdiff_t{1} << 60) / width;
    stepped_once({nowhere(huge, huge, width), nowhere(3, 3, width), nowhere(huge, huge, width),
                  nowhere(3 * (huge / 3), huge / 3, width)});
  }
  set_grain(grain);
}

}  // namespace schuss
