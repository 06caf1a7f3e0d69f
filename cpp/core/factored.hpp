// The first sweep over a span whose second moment is kept as two factors: what the squares of its
// gradient add up to, along its lines and across them.
//
// The 16 lanes of a line (sums.hpp) go on to its end; the places in the lines add in double, a line
// behind the other.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernel.hpp"
#include "pack.hpp"
#include "stages.hpp"
#include "storage.hpp"
#include "sums.hpp"

namespace schuss {
namespace {

// The gradient of n elements as the rule is to see it, and zeros up to a multiple of 16.
template <class T> const T* seen_gradient(const span& a, std::ptrdiff_t first, std::ptrdiff_t n,
                                          const stages<T>& around, buffers<T>& room, T* out) {
  each_part(a, first, first + n, [&](const span& of, std::ptrdiff_t from, std::ptrdiff_t size) {
    T* const to = &of == &a ? out : out + n / sixteen * sixteen;
    const seen<T> all = see(of, from, size, 0, around, room);
    for (std::ptrdiff_t i = 0; i < size; i += pack<T>::size)
      (all.scale * pack<T>::from(all.g + i)).to(to + i);
  });
  return out;
}

// Adds the squares of n elements of a line, whole sixteens.
template <class T>
[[gnu::flatten]] void add_line(const T* g, std::ptrdiff_t n, lanes& to, double* columns) {
  using number = pack<double>;
  lanes sum = to;
  each_pack<T>(0, n, [&](std::ptrdiff_t i, std::ptrdiff_t lane) {
    const doubles<pack<T>> squares = square(pack<T>::from(g + i));
    sum.add(lane, squares);
    double* column = columns + i;
    for (const number& part : squares.part) {
      (number::from(column) + part).to(column);
      column += number::size;
    }
  });
  to = sum;
}

// The same of the last few elements of a line.
template <class T> void add_rest(const T* g, std::ptrdiff_t n, lanes& to, double* columns) {
  T rest[sixteen] = {};
  double sums[sixteen] = {};
  const auto size = static_cast<std::size_t>(n);
  __builtin_memcpy(rest, g, size * sizeof(T));
  __builtin_memcpy(sums, columns, size * sizeof(double));
  add_line(rest, sixteen, to, sums);
  __builtin_memcpy(columns, sums, size * sizeof(double));
}

template <class T> void add_lines_of(const span& a, std::ptrdiff_t first, std::ptrdiff_t last,
                                     const scalars& c, double* lines, double* columns) {
  const std::ptrdiff_t width = static_cast<const outer*>(a.state[0].data)->width;
  const std::ptrdiff_t several = block / width * width;  // 0: a line is longer than a block
  const stages<T> around(c);
  buffers<T> room;
  alignas(64) T gradient[block];
  schuss::lanes sum;
  __builtin_memset(columns, 0, static_cast<std::size_t>(width) * sizeof(double));
  for (std::ptrdiff_t i = first, column = 0, n; i < last; i += n) {
    n = several > 0 ? std::min(several, last - i) : std::min(block, width - column);
    const T* g = seen_gradient(a, i, n, around, room, gradient);
    for (const T* const end = g + n; g < end;) {
      const std::ptrdiff_t size = std::min(end - g, width - column), left = size % sixteen;
      add_line(g, size - left, sum, columns + column);
      if (left != 0) add_rest(g + size - left, left, sum, columns + column + size - left);
      g += size;
      column += size;
      if (column < width) continue;
      *lines++ = sum.fold();
      sum = schuss::lanes();
      column = 0;
    }
  }
}

void add_lines(const span& a, std::ptrdiff_t first, std::ptrdiff_t last, const scalars& c,
               double* lines, double* columns) {
  if (a.x.kind == kind::float64) return add_lines_of<double>(a, first, last, c, lines, columns);
  add_lines_of<float>(a, first, last, c, lines, columns);
}

}  // namespace
}  // namespace schuss
