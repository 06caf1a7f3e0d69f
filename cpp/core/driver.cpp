#include "driver.hpp"

#include <atomic>

#include "threads.hpp"

namespace schuss {
namespace {

bool computes_double(const span& a) { return a.x.kind == kind::float64; }

// Calls work(begin, end, first, last) for all elements of all spans, for as many spans of the same
// set at a time as there are: one region, balanced by bytes.
template <class Bytes, class Work> void over(const std::vector<span>& spans,
                                             const Bytes& bytes_per_element,
                                             const Work& work) noexcept {
  std::ptrdiff_t total = 0;
  for (const span& a : spans) total += a.size * bytes_per_element(a);

  parallel_for(team_for(total), [&](int rank, int team) {
    const default_environment environment;
    const span* a = spans.data();
    const span* const end = a + spans.size();
    // Where this thread's share begins and ends, in bytes from the present span's start.
    std::ptrdiff_t from = cut(total, rank, team), to = cut(total, rank + 1, team);
    const auto own = [&] { return share(a->size, bytes_per_element(*a), from, to); };
    const auto next = [&] {
      const std::ptrdiff_t bytes = a->size * bytes_per_element(*a);
      ++a;
      from -= bytes;
      to -= bytes;
    };
    while (a != end && to > 0) {
      if (from >= a->size * bytes_per_element(*a)) {
        next();
        continue;
      }
      const span* const begin = a;
      const std::ptrdiff_t first = own().first;
      std::ptrdiff_t last = 0;
      do {
        last = own().second;
        next();
      } while (a != end && to > 0 && a->set == begin->set &&
               computes_double(*a) == computes_double(*begin));
      work(begin, a, first, last);
    }
  });
  region_ended(total);
}

// The work of `over` on each span by itself.
template <class Work> auto one_by_one(const Work& work) {
  return [&work](const span* a, const span* end, std::ptrdiff_t first, std::ptrdiff_t last) {
    for (; a != end; ++a, first = 0)
      if (const std::ptrdiff_t to = a + 1 == end ? last : a->size; first < to) work(*a, first, to);
  };
}

}  // namespace

std::ptrdiff_t cut(std::ptrdiff_t total, int rank, int team) noexcept {
  return total / team * rank + total % team * rank / team;
}

std::pair<std::ptrdiff_t, std::ptrdiff_t> share(std::ptrdiff_t size,
                                                std::ptrdiff_t bytes_per_element,
                                                std::ptrdiff_t from, std::ptrdiff_t to) noexcept {
  const auto edge = [&](std::ptrdiff_t target) -> std::ptrdiff_t {
    if (target >= size * bytes_per_element) return size;
    return target <= 0 ? 0 : target / bytes_per_element / chunk * chunk;
  };
  return {edge(from), edge(to)};
}

namespace {

std::ptrdiff_t width(const span& a) { return a.width; }

const rule& rule_of(const table& kernels, const span& a, const std::vector<scalars>& sets) {
  return kernels.rules[sets[a.set].rule];
}

// The sums of a span's chunks, `stride` apart, folded pairwise by index into the first.
void fold(double* sums, std::ptrdiff_t count, std::ptrdiff_t stride) {
  for (std::ptrdiff_t n = count; n > 1; n = (n + 1) / 2) {
    for (std::ptrdiff_t k = 0; k < n / 2; ++k)
      sums[k * stride] = sums[2 * k * stride] + sums[(2 * k + 1) * stride];
    if (n % 2 == 1) sums[n / 2 * stride] = sums[(n - 1) * stride];
  }
}

}  // namespace

void run(const table& kernels, const std::vector<span>& spans,
         const std::vector<scalars>& sets) noexcept {
  over(spans, width,
       [&](const span* a, const span* end, std::ptrdiff_t first, std::ptrdiff_t last) {
         const rule& own = rule_of(kernels, *a, sets);
         const kernel update = computes_double(*a) ? own.float64 : own.float32;
         update(a, end, first, last, sets[a->set]);
       });
}

std::ptrdiff_t chunks(std::ptrdiff_t size) noexcept { return (size + chunk - 1) / chunk; }

measure norm(const table& kernels, const std::vector<span>& spans,
             std::vector<double>& sums) noexcept {
  std::atomic<bool> finite{true};
  const auto bytes_per_element = [](const span& a) { return a.g.width; };
  const auto add = [&](const span& a, std::ptrdiff_t first, std::ptrdiff_t last) {
    if (!kernels.add_squares(a.g, first, last, sums.data() + a.chunk + first / chunk))
      finite = false;
  };
  over(spans, bytes_per_element, one_by_one(add));
  double total = 0;
  for (const span& a : spans) {
    fold(sums.data() + a.chunk, chunks(a.size), 1);
    if (a.size > 0) total += sums[static_cast<std::size_t>(a.chunk)];
  }
  return {total, finite};
}

void look(const table& kernels, const std::vector<span>& spans, const std::vector<scalars>& sets,
          int wanted, std::vector<double>& sums) noexcept {
  const auto regard = [&](const span& a, std::ptrdiff_t first, std::ptrdiff_t last) {
    const rule& own = rule_of(kernels, a, sets);
    const looking at = computes_double(a) ? own.look64 : own.look32;
    at(a, first, last, sets[a.set], wanted, sums.data() + most_sums * (a.chunk + first / chunk));
  };
  over(spans, width, one_by_one(regard));
  for (const span& a : spans)
    for (int s = 0; s < most_sums; ++s)
      fold(sums.data() + most_sums * a.chunk + s, chunks(a.size), most_sums);
}

}  // namespace schuss
