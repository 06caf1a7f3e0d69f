#include "driver.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "threads.hpp"

namespace schuss {
namespace {

bool computes_double(const span& a) { return a.x.kind == kind::float64; }

// What a thread takes at a time: from element `first` of one span to where the next piece begins.
struct place {
  const span* at;
  std::ptrdiff_t first;
};

// Cuts all spans into pieces of about as many bytes each, by where they begin and the last one
// ends.
template <class Bytes> void cut_all(const std::vector<span>& spans, const Bytes& bytes_per_element,
                                    std::ptrdiff_t total, int pieces, place* begins) noexcept {
  int piece = 0;
  std::ptrdiff_t before = 0;  // bytes of the spans before
  for (const span* a = spans.data(); piece < pieces && a != spans.data() + spans.size(); ++a) {
    const std::ptrdiff_t width = bytes_per_element(*a), after = before + a->size * width;
    for (; piece < pieces && cut(total, piece, pieces) < after; ++piece)
      begins[piece] = {a, edge(a->size, width, cut(total, piece, pieces) - before)};
    before = after;
  }
  for (; piece <= pieces; ++piece) begins[piece] = {spans.data() + spans.size(), 0};
}

// Calls work(begin, end, first, last) for all elements of all spans, for as many spans of the same
// set and type at a time as a piece has: one region.
template <class Bytes, class Work> void over(const std::vector<span>& spans,
                                             const Bytes& bytes_per_element,
                                             const Work& work) noexcept {
  std::ptrdiff_t total = 0;
  for (const span& a : spans) total += a.size * bytes_per_element(a);
  const division into = divide(total);
  place begins[most_pieces + 1];
  cut_all(spans, bytes_per_element, total, into.pieces, begins);

  parallel_for(into, [&](int piece) {
    const auto [begin, first] = begins[piece];
    const auto [next, rest] = begins[piece + 1];
    const span* const end = next + (rest > 0);  // of the last span the beginning alone
    for (const span *a = begin, *other; a != end; a = other) {
      other = std::find_if(a + 1, end, [a](const span& b) {
        return b.set != a->set || computes_double(b) != computes_double(*a);
      });
      const bool cut_short = other == end && rest > 0;
      work(a, other, a == begin ? first : 0, cut_short ? rest : other[-1].size);
    }
  });
}

// The work of `over` on each span by itself.
template <class Work> auto one_by_one(const Work& work) {
  return [&work](const span* a, const span* end, std::ptrdiff_t first, std::ptrdiff_t last) {
    for (; a != end; ++a, first = 0)
      if (const std::ptrdiff_t to = a + 1 == end ? last : a->size; first < to) work(*a, first, to);
  };
}

}  // namespace

std::ptrdiff_t cut(std::ptrdiff_t total, int piece, int pieces) noexcept {
  return total / pieces * piece + total % pieces * piece / pieces;
}

std::ptrdiff_t edge(std::ptrdiff_t size, std::ptrdiff_t bytes_per_element,
                    std::ptrdiff_t target) noexcept {
  if (target >= size * bytes_per_element) return size;
  return target <= 0 ? 0 : target / bytes_per_element / chunk * chunk;
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

namespace {

std::ptrdiff_t gradient_width(const span& a) { return a.g.width; }

// The norm with all gradients multiplied by 2^-exponent.
scaled_norm norm_at(int exponent, const table& kernels, const std::vector<span>& spans,
                    std::vector<double>& sums) noexcept {
  std::atomic<bool> finite{true};
  const double scale = std::ldexp(1.0, -exponent);
  const auto add = [&](const span& a, std::ptrdiff_t first, std::ptrdiff_t last) {
    if (!kernels.add_squares(a.g, first, last, scale, sums.data() + a.chunk + first / chunk))
      finite = false;
  };
  over(spans, gradient_width, one_by_one(add));
  double total = 0;
  for (const span& a : spans) {
    fold(sums.data() + a.chunk, chunks(a.size), 1);
    if (a.size > 0) total += sums[static_cast<std::size_t>(a.chunk)];
  }
  return {total, exponent, finite};
}

}  // namespace

scaled_norm norm(const table& kernels, const std::vector<span>& spans,
                 std::vector<double>& sums) noexcept {
  const scaled_norm found = norm_at(0, kernels, spans, sums);
  // Below this what is lost of squares too small for double may count. No float32 leads here but 0.
  constexpr double small = 0x1p-900, infinite = std::numeric_limits<double>::infinity();
  if (!found.finite || (found.squares >= small && found.squares < infinite)) return found;
  const auto is_double = [](const span& a) { return a.g.kind == kind::float64; };
  if (std::none_of(spans.begin(), spans.end(), is_double)) return found;
  return norm_at(found.squares < small ? -600 : 600, kernels, spans, sums);
}

std::size_t first_overflow(const table& kernels, const std::vector<span>& spans,
                           const std::vector<scalars>& sets) noexcept {
  std::atomic<std::size_t> found{spans.size()};
  const auto look = [&](const span& a, std::ptrdiff_t first, std::ptrdiff_t last) {
    if (kernels.scales_finite(a, first, last, sets[a.set])) return;
    const auto number = static_cast<std::size_t>(&a - spans.data());
    for (std::size_t before = found; number < before;)
      if (found.compare_exchange_weak(before, number)) return;
  };
  over(spans, gradient_width, one_by_one(look));
  return found;
}

void measure(const table& kernels, const std::vector<span>& spans, const std::vector<scalars>& sets,
             unsigned wanted, std::vector<double>& sums) noexcept {
  const auto add = [&](const span& a, std::ptrdiff_t first, std::ptrdiff_t last) {
    const rule& own = rule_of(kernels, a, sets);
    const measure_kernel sum = computes_double(a) ? own.measure64 : own.measure32;
    sum(a, first, last, sets[a.set], wanted, sums.data() + most_sums * (a.chunk + first / chunk));
  };
  over(spans, width, one_by_one(add));
  for (const span& a : spans)
    for (int s = 0; s < most_sums; ++s)
      fold(sums.data() + most_sums * a.chunk + s, chunks(a.size), most_sums);
}

}  // namespace schuss
