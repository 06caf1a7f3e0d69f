// Where things lie, for kernels and driver alike: what a kind takes, and the chunks of a span. No
// more than the compiler computes, or writes out where it is asked for: every object has its own.
#pragma once

#include <cstddef>

#include "kernel.hpp"

namespace schuss {
namespace {

// Whether a kind is narrower than the compute type.
constexpr bool narrow(kind k) { return k >= kind::float16; }

// Whether it is of codes, which have a scale for each block of theirs.
constexpr bool has_codes(kind k) { return k == kind::signed8 || k == kind::unsigned8; }

// Whether its elements are stored nowhere: they are computed where they are read.
constexpr bool derived(kind k) { return k == kind::outer || k == kind::sum; }

// Bytes of an element; 0 where none is stored.
constexpr std::ptrdiff_t width_of(kind k) {
  if (k == kind::none || derived(k)) return 0;
  if (has_codes(k)) return 1;
  return narrow(k) ? 2 : k == kind::float64 ? 8 : 4;
}

// The chunks of a row of so many elements; of a span, those before the one that begins at an
// element.
constexpr std::ptrdiff_t chunks_of(std::ptrdiff_t row_size) {
  return (row_size + chunk - 1) / chunk;
}
constexpr std::ptrdiff_t chunks_before(const span& a, std::ptrdiff_t first) {
  return first / a.row_size * chunks_of(a.row_size) + first % a.row_size / chunk;
}

// Where the chunk of a span ends that begins at an element, in elements before `last`.
constexpr std::ptrdiff_t end_of_chunk(const span& a, std::ptrdiff_t from, std::ptrdiff_t last) {
  const std::ptrdiff_t row = (from / a.row_size + 1) * a.row_size;
  const std::ptrdiff_t end = from + chunk < row ? from + chunk : row;
  return end < last ? end : last;
}

}  // namespace
}  // namespace schuss
