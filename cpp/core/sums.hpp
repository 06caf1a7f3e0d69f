// The first sweep, which writes nothing: what a step has to know of whole arrays, in a fixed tree.
//
// Sums are taken in double, of chunks from the array's start: element i of one adds its value to
// lane i mod 16, in order; lanes fold 8-4-2-1. The driver folds the chunks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "elements.hpp"
#include "kernel.hpp"
#include "pack.hpp"
#include "rules.hpp"
#include "stages.hpp"
#include "storage.hpp"

namespace schuss {
namespace {

// The sum of a chunk.
class lanes {
 public:
  // Adds the values of a pack, of which the first one is element i, or the first n of them.
  template <class P>
  SCHUSS_INLINE void add(std::ptrdiff_t i, std::ptrdiff_t n, const doubles<P>& values) {
    double* const at = all_ + i % 16;
    if (n >= P::size) {
      for (std::size_t p = 0; p < doubles<P>::parts; ++p) {
        double* const part = at + p * pack<double>::size;
        (number::from(part) + values.part[p]).to(part);
      }
    } else {
      double each[P::size];
      __builtin_memcpy(each, values.part, sizeof each);
      for (std::ptrdiff_t l = 0; l < n; ++l) at[l] += each[l];
    }
  }

  // Their sum, as a tree.
  double fold() {
    for (int half = 8; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) all_[l] = all_[l] + all_[l + half];
    return all_[0];
  }

 private:
  using number = pack<double>;
  alignas(64) double all_[16] = {};
};

// Calls work(a, i, element, n) for the packs of elements first <= element < last of a span: n of
// them, from i on of a, which is the span or, for the last few, a copy with room for a whole pack.
template <class T, class Work> SCHUSS_INLINE void each_pack(const span& of, std::ptrdiff_t first,
                                                            std::ptrdiff_t last, const Work& work) {
  constexpr std::ptrdiff_t size = pack<T>::size;
  const std::ptrdiff_t left = (last - first) % size;
  work(of, first, first, last - left - first);
  if (left == 0) return;
  const rest copies(of, last - left, left);
  work(copies.copy, 0, last - left, left);
}

// ---- What a step would do

// Whether a rule measures something of its own.
template <class Rule> constexpr auto measures(int) -> decltype(&Rule::measure, bool()) {
  return true;
}
template <class Rule> constexpr bool measures(long) { return false; }

// Adds what is wanted of n elements, from i on of a, to the lanes of a chunk.
template <class T, class Rule, std::size_t... S>
[[gnu::noinline, gnu::flatten]] void add_wanted(const span& a, std::ptrdiff_t first,
                                                std::ptrdiff_t element, std::ptrdiff_t n,
                                                const Rule& of, const stages<T>& stages_of,
                                                unsigned wanted, lanes (&sums)[most_sums],
                                                std::index_sequence<S...>) {
  using number = pack<T>;
  const Rule rule = of;
  const stages<T> around = stages_of;
  const stream x_of = is(a.master) ? a.master : a.x, g_of = a.g;
  [[maybe_unused]] const stream states[] = {a.state[S]..., {}};
  for (std::ptrdiff_t i = 0; i < n; i += number::size) {
    const std::ptrdiff_t at = element + i, left = n - i;
    const number x = load<T>(x_of, first + i);
    const number d = around.seen(load<T>(g_of, first + i), x);
    [[maybe_unused]] number s[] = {load<T>(states[S], first + i)..., number()};
    if ((wanted & measured::xx) != 0) sums[0].add(at, left, square(x));
    if ((wanted & measured::gg) != 0) sums[1].add(at, left, square(d));
    if constexpr (measures<Rule>(0))
      if ((wanted & measured::own) != 0) {
        const measurement<number> own = rule.measure(x, d, s[S]...);
        sums[4].add(at, left, own.p);
        sums[5].add(at, left, own.q);
      }
    if ((wanted & (measured::uu | measured::agree)) != 0) {
      const number u = rule(x, d, s[S]...), agrees = select(u * d > 0, number(1), number(0));
      if ((wanted & measured::uu) != 0) sums[2].add(at, left, square(u));
      if ((wanted & measured::agree) != 0) sums[3].add(at, left, doubles<number>(agrees));
    }
  }
}

template <class T, class Rule, class States>
void measure(const span& a, std::ptrdiff_t first, std::ptrdiff_t last, const Rule& rule,
             const stages<T>& around, unsigned wanted, double* sums, States states) {
  for (std::ptrdiff_t from = first; from < last; from += chunk) {
    lanes own[most_sums];
    each_pack<T>(a, from, std::min(from + chunk, last),
                 [&](const span& b, std::ptrdiff_t i, std::ptrdiff_t element, std::ptrdiff_t n) {
                   add_wanted(b, i, element, n, rule, around, wanted, own, states);
                 });
    for (lanes& each : own) *sums++ = each.fold();
  }
}

// ---- The norm

template <class T, bool scales>
[[gnu::noinline]] void square_packs(const stream& of, std::ptrdiff_t first, std::ptrdiff_t element,
                                    std::ptrdiff_t n, double scale, lanes& sum) {
  const stream g = of;
  const pack<double> by = scale;
  for (std::ptrdiff_t i = 0; i < n; i += pack<T>::size) {
    doubles<pack<T>> d = load<T>(g, first + i);
    if constexpr (scales)
      for (pack<double>& part : d.part) part = by * part;
    sum.add(element + i, n - i, d * d);
  }
}

template <class T> bool all_finite(const stream& g, std::ptrdiff_t first, std::ptrdiff_t n) {
  bool finite = true;
  for (std::ptrdiff_t i = first; i < first + n; i += pack<T>::size) {
    const pack<T> d = load<T>(g, i);
    finite = finite && !any(d - d != T(0));
  }
  return finite;
}

// Writes the sum of the squares of each chunk, returns whether all is finite. A sum of finite
// doubles may still overflow, so that only then each element is asked.
template <class T, bool scales> bool squares_of(const stream& s, std::ptrdiff_t first,
                                                std::ptrdiff_t last, double scale, double* sums) {
  bool finite = true;
  span of{};
  of.g = s;
  for (std::ptrdiff_t from = first; from < last; from += chunk) {
    lanes own;
    const std::ptrdiff_t to = std::min(from + chunk, last);
    each_pack<T>(of, from, to,
                 [&](const span& a, std::ptrdiff_t i, std::ptrdiff_t element, std::ptrdiff_t n) {
                   square_packs<T, scales>(a.g, i, element, n, scale, own);
                 });
    *sums = own.fold();
    if (*sums - *sums != 0)
      each_pack<T>(of, from, to,
                   [&](const span& a, std::ptrdiff_t i, std::ptrdiff_t, std::ptrdiff_t n) {
                     finite = finite && all_finite<T>(a.g, i, n);
                   });
    ++sums;
  }
  return finite;
}

bool add_squares(const stream& s, std::ptrdiff_t first, std::ptrdiff_t last, double scale,
                 double* sums) {
  const bool wide = s.kind == kind::float64;
  if (scale == 1)
    return wide ? squares_of<double, false>(s, first, last, scale, sums)
                : squares_of<float, false>(s, first, last, scale, sums);
  return wide ? squares_of<double, true>(s, first, last, scale, sums)
              : squares_of<float, true>(s, first, last, scale, sums);
}

// ---- What a factor makes of finite gradients

template <class T>
bool scales_finite_in(const span& of, std::ptrdiff_t first, std::ptrdiff_t last, const scalars& c) {
  const pack<T> scale = static_cast<T>(c.scale), clip = static_cast<T>(c.clip);
  bool finite = true;
  each_pack<T>(of, first, last,
               [&](const span& a, std::ptrdiff_t from, std::ptrdiff_t, std::ptrdiff_t n) {
                 for (std::ptrdiff_t i = from; i < from + n; i += pack<T>::size) {
                   const pack<T> d = clamp(scale * load<T>(a.g, i), -clip, clip);
                   finite = finite && !any(d - d != T(0));
                 }
               });
  return finite;
}

bool scales_finite(const span& a, std::ptrdiff_t first, std::ptrdiff_t last, const scalars& c) {
  return a.x.kind == kind::float64 ? scales_finite_in<double>(a, first, last, c)
                                   : scales_finite_in<float>(a, first, last, c);
}

}  // namespace
}  // namespace schuss
