// A span's elements where they lie: of an array as it is, or of each row that a step is of, one
// after another, with a gradient that may be a sum.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernel.hpp"
#include "pack.hpp"
#include "storage.hpp"

namespace schuss {
namespace {

// Asks the memory for rows ahead of the one at hand, which lie anywhere, so that no processor
// foresees it.
class ahead {
 public:
  static constexpr std::ptrdiff_t rows = 8;

  explicit ahead(const span& a) {
    const auto take = [&](const stream& s) {
      if (is(s) && !derived(s.kind))
        streams_[count_++] = {static_cast<const char*>(s.data), a.row_size * s.width};
    };
    take(a.x), take(a.master), take(a.average), take(a.low), take(a.high);
    for (const stream& s : a.state) take(s);
  }

  SCHUSS_INLINE void ask(std::ptrdiff_t row, const piece& gradient, std::ptrdiff_t row_size) const {
    for (const row_of* s = streams_; s != streams_ + count_; ++s)
      ask(s->first + row * s->bytes, s->bytes);
    ask(static_cast<const char*>(gradient.data), row_size * width_of(gradient.kind));
  }

 private:
  struct row_of {
    const char* first;
    std::ptrdiff_t bytes;
  };

  // By whole lines of the cache, since a row may begin within one; the first ones of a long row,
  // the rest of which is foreseen.
  SCHUSS_INLINE static void ask(const char* from, std::ptrdiff_t bytes) {
    constexpr std::uintptr_t line = 64;
    constexpr std::ptrdiff_t most = 512;
    const auto begin = reinterpret_cast<std::uintptr_t>(from);
    const std::uintptr_t end = begin + static_cast<std::uintptr_t>(std::min(bytes, most));
    for (std::uintptr_t at = begin / line * line; at < end; at += line)
      __builtin_prefetch(reinterpret_cast<const void*>(at), 1);
  }

  row_of streams_[5 + most_states];
  int count_ = 0;
};

SCHUSS_INLINE std::ptrdiff_t first_piece(const rows& some, std::ptrdiff_t k) {
  return some.begins == nullptr ? k : some.begins[k];
}

// The gradient of row k of those that a step is of: a piece as it lies, or their sum.
SCHUSS_INLINE stream gradient_of(const rows& some, std::ptrdiff_t k, std::ptrdiff_t row_size,
                                 std::ptrdiff_t first, sum& up) {
  const piece* const pieces = some.pieces + first_piece(some, k);
  const std::ptrdiff_t count = first_piece(some, k + 1) - first_piece(some, k);
  if (count == 1 && pieces->weight == 1 && some.factors == nullptr) {
    const std::ptrdiff_t width = width_of(pieces->kind);
    return {static_cast<char*>(pieces->data) - first * width, pieces->kind, width};
  }
  up = {pieces, count, first, some.factors == nullptr ? nullptr : some.factors + k, row_size};
  return {&up, kind::sum, width_of(pieces->kind)};
}

// Calls work(a, first, last) for elements first <= i < last of a span.
template <class Work> SCHUSS_INLINE void each_row(const span& of, std::ptrdiff_t first,
                                                  std::ptrdiff_t last, const Work& work) {
  if (of.rows == nullptr) return work(of, first, last);
  const rows& some = *of.rows;
  const std::ptrdiff_t size = of.row_size, count = of.size / size;
  const ahead next(of);
  span a = of;
  sum up;
  a.rows = nullptr;
  for (std::ptrdiff_t k = first / size; first < last; ++k) {
    if (const std::ptrdiff_t row = k + ahead::rows; row < count)
      next.ask(some.numbers[row], some.pieces[first_piece(some, row)], size);
    const std::ptrdiff_t end = std::min(last, (k + 1) * size), row = some.numbers[k] * size;
    a.g = gradient_of(some, k, size, row, up);
    a.size = row + size;
    work(a, first - k * size + row, end - k * size + row);
    first = end;
  }
}

// Where the chunk of a span ends that begins at an element.
SCHUSS_INLINE std::ptrdiff_t end_of_chunk(const span& a, std::ptrdiff_t from, std::ptrdiff_t last) {
  return std::min({from + chunk, last, (from / a.row_size + 1) * a.row_size});
}

}  // namespace
}  // namespace schuss
