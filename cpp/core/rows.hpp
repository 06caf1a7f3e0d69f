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

// Rows that are asked for ahead of the one at hand, and bytes of each that are: rows lie anywhere,
// which no processor foresees.
constexpr std::ptrdiff_t rows_ahead = 6, most_asked = 512;

SCHUSS_INLINE void ask_for(const void* from, std::ptrdiff_t bytes) {
  constexpr std::uintptr_t line = 64;
  const auto first = reinterpret_cast<std::uintptr_t>(from) / line * line;
  const auto last = reinterpret_cast<std::uintptr_t>(from) +
                    static_cast<std::uintptr_t>(std::min(bytes, most_asked));
  for (std::uintptr_t at = first; at < last; at += line)
    __builtin_prefetch(reinterpret_cast<const void*>(at), 1);
}

SCHUSS_INLINE void ask_for_row(const span& a, std::ptrdiff_t row) {
  const auto ask = [&](const stream& s) {
    if (is(s) && !derived(s.kind))
      ask_for(at<char>(s, row * a.row_size * s.width), a.row_size * s.width);
  };
  ask(a.x), ask(a.master), ask(a.average), ask(a.low), ask(a.high);
  for (const stream& s : a.state) ask(s);
}

// The gradient of row k of those that a step is of: a piece as it lies, or their sum.
SCHUSS_INLINE stream gradient_of(const rows& some, std::ptrdiff_t k, std::ptrdiff_t row_size,
                                 std::ptrdiff_t first, sum& up) {
  const piece* const pieces = some.pieces + some.begins[k];
  const std::ptrdiff_t count = some.begins[k + 1] - some.begins[k];
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
  span a = of;
  sum up;
  a.rows = nullptr;
  for (std::ptrdiff_t k = first / size; first < last; ++k) {
    if (const std::ptrdiff_t ahead = k + rows_ahead; ahead < count) {
      ask_for_row(of, some.numbers[ahead]);
      const piece& next = some.pieces[some.begins[ahead]];
      ask_for(next.data, size * width_of(next.kind));
    }
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
