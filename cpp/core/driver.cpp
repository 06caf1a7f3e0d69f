#include "driver.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "layout.hpp"
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
      begins[piece] = {a, edge(a->size, a->row_size, width, cut(total, piece, pieces) - before)};
    before = after;
  }
  for (; piece <= pieces; ++piece) begins[piece] = {spans.data() + spans.size(), 0};
}

bool has_sets(const span& a) { return a.rows != nullptr && a.rows->sets != nullptr; }

// Whether the two go through a kernel in one call.
bool go_together(const span& a, const span& b) {
  return a.set == b.set && computes_double(a) == computes_double(b) && !has_sets(a) &&
         !has_sets(b) && (a.report == nullptr) == (b.report == nullptr);
}

// Calls work(begin, end, first, last) for all elements of all spans, for as many spans that go
// together at a time as a piece has: one region.
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
      other = std::find_if(a + 1, end, [a](const span& b) { return !go_together(*a, b); });
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

std::ptrdiff_t edge(std::ptrdiff_t size, std::ptrdiff_t row_size, std::ptrdiff_t bytes_per_element,
                    std::ptrdiff_t target) noexcept {
  if (target >= size * bytes_per_element) return size;
  if (target <= 0) return 0;
  const std::ptrdiff_t element = target / bytes_per_element, in_row = element % row_size;
  return element - in_row % chunk;
}

namespace {

std::ptrdiff_t width(const span& a) { return a.width; }

const rule& rule_of(const table& kernels, const span& a, const std::vector<scalars>& sets) {
  return kernels.rules[sets[a.set].rule];
}

// Sums that are `stride` apart, folded pairwise by index into the first.
void fold_pairs(double* sums, std::ptrdiff_t count, std::ptrdiff_t stride) {
  for (std::ptrdiff_t n = count; n > 1; n = (n + 1) / 2) {
    for (std::ptrdiff_t k = 0; k < n / 2; ++k)
      sums[k * stride] = sums[2 * k * stride] + sums[(2 * k + 1) * stride];
    if (n % 2 == 1) sums[n / 2 * stride] = sums[(n - 1) * stride];
  }
}

// The number of the chunk that begins at an element, among those of all spans.
std::ptrdiff_t chunk_at(const span& a, std::ptrdiff_t first) {
  return a.chunk + chunks_before(a, first);
}

// Those of the chunks of each row of so many elements, into one behind the other; returns how many
// rows there are.
std::ptrdiff_t fold_rows(std::ptrdiff_t row_size, std::ptrdiff_t size, double* sums, int several) {
  if (size == 0) return 0;
  const std::ptrdiff_t each = chunks_of(row_size), count = size / row_size;
  for (std::ptrdiff_t row = 0; row < count; ++row)
    for (int s = 0; s < several; ++s) {
      fold_pairs(sums + several * row * each + s, each, several);
      sums[row * several + s] = sums[several * row * each + s];
    }
  return count;
}

}  // namespace

std::ptrdiff_t chunks(const span& a) noexcept { return a.size == 0 ? 0 : chunks_before(a, a.size); }

void fold(const span& a, double* sums, int several) noexcept {
  const std::ptrdiff_t rows = fold_rows(a.row_size, a.size, sums, several);
  for (int s = 0; s < several; ++s) fold_pairs(sums + s, rows, several);
}

void run(const table& kernels, const std::vector<span>& spans,
         const std::vector<scalars>& sets) noexcept {
  over(spans, width,
       [&](const span* a, const span* end, std::ptrdiff_t first, std::ptrdiff_t last) {
         const auto update = [&](std::size_t set, std::ptrdiff_t from, std::ptrdiff_t to) {
           const rule& own = kernels.rules[sets[set].rule];
           (computes_double(*a) ? own.float64 : own.float32)(a, end, from, to, sets[set]);
         };
         if (!has_sets(*a)) return update(a->set, first, last);
         const std::size_t* const sets_of = a->rows->sets;
         const std::ptrdiff_t size = a->row_size;
         for (std::ptrdiff_t to; first < last; first = to) {
           std::ptrdiff_t row = first / size;
           const std::size_t set = sets_of[row];
           while (++row * size < last && sets_of[row] == set) continue;
           to = std::min(row * size, last);
           update(set, first, to);
         }
       });
}

namespace {

std::ptrdiff_t gradient_width(const span& a) { return a.g.width; }

}  // namespace

bool sum_squares(int exponent, const table& kernels, const std::vector<span>& spans,
                 std::vector<double>& sums) noexcept {
  std::atomic<bool> finite{true};
  const double scale = std::ldexp(1.0, -exponent);
  const auto add = [&](const span& a, std::ptrdiff_t first, std::ptrdiff_t last) {
    if (!kernels.add_squares(a, first, last, scale, sums.data() + chunk_at(a, first)))
      finite = false;
  };
  over(spans, gradient_width, one_by_one(add));
  return finite;
}

namespace {

scaled_norm norm_at(int exponent, const table& kernels, const std::vector<span>& spans,
                    std::vector<double>& sums) noexcept {
  const bool finite = sum_squares(exponent, kernels, spans, sums);
  double total = 0;
  for (const span& a : spans) {
    if (a.size == 0) continue;
    fold(a, sums.data() + a.chunk, 1);
    total += sums[static_cast<std::size_t>(a.chunk)];
  }
  return {total, exponent, finite};
}

// By which exponent squares of float64 are to be summed again: 0 where they needn't be.
int better_exponent(double squares, bool finite) {
  // Below this what is lost of squares too small for double may count. No float32 leads here but 0.
  constexpr double small = 0x1p-900, infinite = std::numeric_limits<double>::infinity();
  if (!finite || (squares >= small && squares < infinite)) return 0;
  return squares < small ? -600 : 600;
}

// The norm of elements first <= i < last of a span, whole rows, whose chunks have these sums.
scaled_norm settle(const table& kernels, const span& a, std::ptrdiff_t first, std::ptrdiff_t last,
                   double* sums) {
  if (first == last) return {0, 0, true};
  bool finite = true;
  const auto fold_each = [&] { fold_pairs(sums, fold_rows(a.row_size, last - first, sums, 1), 1); };
  const auto again = [&](int exponent) {
    finite = kernels.add_squares(a, first, last, std::ldexp(1.0, -exponent), sums);
    fold_each();
  };
  fold_each();
  if (*sums - *sums != 0) again(0);
  const int exponent = computes_double(a) ? better_exponent(*sums, finite) : 0;
  if (exponent != 0) again(exponent);
  return {*sums, exponent, finite};
}

}  // namespace

scaled_norm norm(const table& kernels, const std::vector<span>& spans,
                 std::vector<double>& sums) noexcept {
  const scaled_norm found = norm_at(0, kernels, spans, sums);
  const int exponent = better_exponent(spans, found.squares, found.finite);
  return exponent == 0 ? found : norm_at(exponent, kernels, spans, sums);
}

int better_exponent(const std::vector<span>& spans, double squares, bool finite) noexcept {
  const int found = better_exponent(squares, finite);
  return std::any_of(spans.begin(), spans.end(), computes_double) ? found : 0;
}

void norms(const table& kernels, const std::vector<span>& spans, bool of_rows,
           std::vector<double>& sums, std::vector<scaled_norm>& found) noexcept {
  sum_squares(0, kernels, spans, sums);
  parallel_for(divide(0), [&](int) {  // for the floating-point environment of a region
    scaled_norm* next = found.data();
    for (const span& a : spans) {
      const std::ptrdiff_t each = of_rows ? a.row_size : a.size;
      double* const own = sums.data() + a.chunk;
      if (!of_rows) *next++ = settle(kernels, a, 0, a.size, own);
      for (std::ptrdiff_t row = 0; of_rows && row < a.size; row += each)
        *next++ = settle(kernels, a, row, row + each, own + chunks_before(a, row));
    }
  });
}

scaled_norm added(const std::vector<scaled_norm>& norms) noexcept {
  scaled_norm all{0, norms.empty() ? 0 : norms.front().exponent, true};
  for (const scaled_norm& one : norms) all.exponent = std::max(all.exponent, one.exponent);
  for (const scaled_norm& one : norms) {
    const int beyond = one.exponent - all.exponent;
    all.squares += beyond == 0 ? one.squares : std::ldexp(one.squares, 2 * beyond);
    all.finite = all.finite && one.finite;
  }
  return all;
}

namespace {

// Whether a stream goes on behind the elements of another one.
bool goes_on(const stream& before, const stream& after, std::ptrdiff_t size) {
  if (before.kind != after.kind || derived(before.kind)) return false;
  if (before.kind == kind::none) return true;
  if (has_codes(before.kind) &&
      (size % coded != 0 || static_cast<const char*>(before.beside) + size / coded !=
                                static_cast<const char*>(after.beside)))
    return false;
  return static_cast<const char*>(before.data) + size * before.width == after.data;
}

bool goes_on(const span& a, const span& b) {
  const auto beside = [&](const stream& one, const stream& other) {
    return goes_on(one, other, a.size);
  };
  return beside(a.x, b.x) && a.set == b.set && a.rows == nullptr && b.rows == nullptr &&
         a.position + a.size == b.position && beside(a.g, b.g) && beside(a.master, b.master) &&
         beside(a.average, b.average) && beside(a.low, b.low) && beside(a.high, b.high) &&
         std::equal(a.state, a.state + most_states, b.state, beside);
}

}  // namespace

bool join(const std::vector<span>& spans, std::vector<span>& joined) {
  const auto goes = [](const span& a, const span& b) { return goes_on(a, b); };
  if (std::adjacent_find(spans.begin(), spans.end(), goes) == spans.end()) return false;
  joined.clear();
  for (const span& a : spans) {
    if (joined.empty() || !goes_on(joined.back(), a)) {
      joined.push_back(a);
    } else {
      joined.back().size += a.size;
      joined.back().row_size = joined.back().size;
    }
  }
  return true;
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
    sum(a, first, last, sets[a.set], wanted, sums.data() + most_sums * chunk_at(a, first));
  };
  over(spans, width, one_by_one(add));
}

void add(const table& kernels, const std::vector<span>& spans) noexcept {
  over(spans, width, one_by_one(kernels.add));
}

}  // namespace schuss
