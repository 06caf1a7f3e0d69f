// A span's elements where they lie: of an array as it is, or of each row that a step is of, one
// after another, with a gradient that may be a sum.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernel.hpp"
#include "layout.hpp"
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

// The first piece of row k, and how many there are.
SCHUSS_INLINE piece first_piece(const rows& some, std::ptrdiff_t k, std::ptrdiff_t row_size) {
  if (some.begins != nullptr) return some.pieces[some.begins[k]];
  piece own = *some.pieces;
  own.data = static_cast<char*>(own.data) + k * row_size * width_of(own.kind);
  return own;
}
SCHUSS_INLINE std::ptrdiff_t pieces_of(const rows& some, std::ptrdiff_t k) {
  return some.begins == nullptr ? 1 : some.begins[k + 1] - some.begins[k];
}

// The gradient of row k of those that a step is of, which begins at element `first`: a piece as it
// lies, or a sum, in room for the two.
struct sum_of_row {
  piece own;
  sum up;
};
SCHUSS_INLINE stream gradient_of(const rows& some, std::ptrdiff_t k, std::ptrdiff_t row_size,
                                 std::ptrdiff_t first, sum_of_row& room) {
  room.own = first_piece(some, k, row_size);
  const std::ptrdiff_t count = pieces_of(some, k), width = width_of(room.own.kind);
  if (count == 1 && room.own.weight == 1 && some.factors == nullptr)
    return {static_cast<char*>(room.own.data) - first * width, room.own.kind, width};
  const piece* const pieces = count == 1 ? &room.own : some.pieces + some.begins[k];
  room.up = {pieces, count, first, some.factors == nullptr ? nullptr : some.factors + k, row_size};
  return {&room.up, kind::sum, width};
}

// Calls work(a, first, last) for elements first <= i < last of a span.
template <class Work> SCHUSS_INLINE void each_row(const span& of, std::ptrdiff_t first,
                                                  std::ptrdiff_t last, const Work& work) {
  if (of.rows == nullptr) return work(of, first, last);
  const rows& some = *of.rows;
  const std::ptrdiff_t size = of.row_size, count = of.size / size;
  const ahead next(of);
  span a = of;
  sum_of_row room;
  a.rows = nullptr;
  for (std::ptrdiff_t k = first / size; first < last; ++k) {
    if (const std::ptrdiff_t row = k + ahead::rows; row < count)
      next.ask(some.numbers[row], first_piece(some, row, size), size);
    const std::ptrdiff_t end = std::min(last, (k + 1) * size), row = some.numbers[k] * size;
    a.g = gradient_of(some, k, size, row, room);
    a.size = row + size;
    work(a, first - k * size + row, end - k * size + row);
    first = end;
  }
}

}  // namespace
}  // namespace schuss
