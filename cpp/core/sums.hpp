// The first sweep, which writes nothing: what a step has to know of whole arrays, in the tree of
// lanes.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "elements.hpp"
#include "kernel.hpp"
#include "lanes.hpp"
#include "layout.hpp"
#include "pack.hpp"
#include "rows.hpp"
#include "rules.hpp"
#include "stages.hpp"
#include "storage.hpp"

namespace schuss {
namespace {

// Calls work(a, i, n) for elements first <= i < last of a span, whole sixteens: n of them, from i
// on of a, which is the span or, for the last few, a copy that ends in zeros.
template <class Work> SCHUSS_INLINE void each_part(const span& of, std::ptrdiff_t first,
                                                   std::ptrdiff_t last, const Work& work) {
  const std::ptrdiff_t left = (last - first) % sixteen;
  if (first < last - left) work(of, first, last - left - first);
  if (left == 0) return;
  const rest copies(of, last - left, left);
  work(copies.copy, 0, sixteen);
}

// The same for work(a, i, n, sums), which adds to the lanes of a chunk: those of the zeros don't
// count.
template <std::size_t count, class Work>
SCHUSS_INLINE void each_part(const span& of, std::ptrdiff_t first, std::ptrdiff_t last,
                             lanes (&sums)[count], const Work& work) {
  each_part(of, first, last, [&](const span& a, std::ptrdiff_t i, std::ptrdiff_t n) {
    if (&a == &of) return work(a, i, n, sums);
    lanes all[count];
    for (std::size_t s = 0; s < count; ++s) all[s] = sums[s];
    work(a, i, n, all);
    for (std::size_t s = 0; s < count; ++s) sums[s].take((last - first) % sixteen, all[s]);
  });
}

// Asks for what a loop over a single array will read, once a cache line of T. Of several arrays the
// processor fetches enough by itself: there asking took 1.05 to 1.25 times as long (Zen 3).
template <class T> SCHUSS_INLINE void ask_ahead(const void* here, std::ptrdiff_t lane) {
  constexpr std::ptrdiff_t line = 64, ahead = 2048;
  if (lane * static_cast<std::ptrdiff_t>(sizeof(T)) % line == 0)
    __builtin_prefetch(static_cast<const char*>(here) + ahead);
}

// ---- Squares

template <class T, bool scales>
[[gnu::noinline, gnu::flatten]] void add_squares_of(const stream& of, std::ptrdiff_t first,
                                                    std::ptrdiff_t n, double scale, lanes& to) {
  const stream g = of;
  const pack<double> by = scale;
  lanes sum = to;
  each_pack<T>(first, n, [&](std::ptrdiff_t i, std::ptrdiff_t lane) {
    ask_ahead<T>(at<char>(g, i * g.width), lane);
    doubles<pack<T>> d = load<T>(g, i);
    if constexpr (scales)
      for (pack<double>& part : d.part) part = by * part;
    sum.add(lane, d * d);
  });
  to = sum;
}

// ---- What a step would do

// Whether a rule measures something of its own.
template <class Rule> constexpr auto measures(int) -> decltype(&Rule::measure, bool()) {
  return true;
}
template <class Rule> constexpr bool measures(long) { return false; }

// A block of arrays as the rule sees it, in the compute type: where they are, or in a buffer. Only
// g is still to be scaled.
template <class T> struct seen {
  pack<T> scale;
  const T *x, *g, *state[most_states];
};
template <class T> struct buffers {
  alignas(64) T x[block], g[block], state[most_states][block];
};

template <class T> [[gnu::noinline]] seen<T> see(const span& a, std::ptrdiff_t first,
                                                 std::ptrdiff_t n, int states,
                                                 const stages<T>& around, buffers<T>& room) {
  seen<T> all{};
  all.x = opened(is(a.master) ? a.master : a.x, first, n, room.x);
  if (around.prepares || around.decays) {
    around.prepare(n, a.g, first, all.x, room.g);
    all.g = room.g;
    all.scale = T(1);
  } else {
    all.g = opened(a.g, first, n, room.g);
    all.scale = around.by.scale;
  }
  for (int s = 0; s < states; ++s) all.state[s] = opened(a.state[s], first, n, room.state[s]);
  return all;
}

template <class T>
[[gnu::noinline, gnu::flatten]] void add_gradient(const seen<T>& all, std::ptrdiff_t n, lanes& to) {
  const T* const g = all.g;
  const pack<T> scale = all.scale;
  lanes sum = to;
  each_pack<T>(0, n, [&](std::ptrdiff_t i, std::ptrdiff_t lane) {
    ask_ahead<T>(g + i, lane);
    sum.add(lane, square(scale * pack<T>::from(g + i)));
  });
  to = sum;
}

// One of the sums that take the rule, or the two of its own.
template <measured what, class T, class Rule, std::size_t... S>
[[gnu::noinline, gnu::flatten]] void add_of_rule(const seen<T>& all, std::ptrdiff_t n,
                                                 const Rule& of, lanes* to,
                                                 std::index_sequence<S...>) {
  using number = pack<T>;
  const Rule rule = of;
  const number scale = all.scale;
  const T *const x = all.x, *const g = all.g;
  [[maybe_unused]] const T* const states[] = {all.state[S]..., nullptr};
  lanes sum = to[0];
  [[maybe_unused]] lanes second = to[1];
  each_pack<T>(0, n, [&](std::ptrdiff_t i, std::ptrdiff_t lane) {
    const number w = number::from(x + i), d = scale * number::from(g + i);
    [[maybe_unused]] number s[] = {number::from(states[S] + i)..., w};
    if constexpr (what == own) {
      const measurement<number> found = rule.measure(w, d, s[S]...);
      sum.add(lane, found.p);
      second.add(lane, found.q);
    } else {
      const number u = rule(w, d, s[S]...);
      if constexpr (what == uu)
        sum.add(lane, square(u));
      else
        sum.add(lane, doubles<number>(select(u * d > 0, number(1), number(0))));
    }
  });
  to[0] = sum;
  if constexpr (what == own) to[1] = second;
}

// Adds what is wanted of n elements, whole sixteens. Each sum has a loop of its own, whose lanes
// have room in registers, over blocks that stay in the L1 cache: with lanes in memory, and all sums
// in one loop, it took 1.3 to 2.4 times as long.
template <class T, class Rule, std::size_t... S>
[[gnu::noinline]] void add_wanted(const span& a, std::ptrdiff_t first, std::ptrdiff_t n,
                                  const Rule& rule, const stages<T>& around, unsigned wanted,
                                  lanes (&sums)[most_sums], std::index_sequence<S...> states) {
  buffers<T> room;
  for (std::ptrdiff_t i = first; i < first + n; i += block) {
    const std::ptrdiff_t size = std::min(block, first + n - i);
    const stream& x = is(a.master) ? a.master : a.x;
    if ((wanted & xx) != 0) add_squares_of<T, false>(x, i, size, 1, sums[0]);
    const seen<T> all = see(a, i, size, sizeof...(S), around, room);
    if ((wanted & gg) != 0) add_gradient(all, size, sums[1]);
    if ((wanted & uu) != 0) add_of_rule<uu>(all, size, rule, sums + 2, states);
    if ((wanted & agree) != 0) add_of_rule<agree>(all, size, rule, sums + 3, states);
    if constexpr (measures<Rule>(0))
      if ((wanted & own) != 0) add_of_rule<own>(all, size, rule, sums + 4, states);
  }
}

template <class T, class Rule, class States>
void measure(const span& of, std::ptrdiff_t first, std::ptrdiff_t last, const Rule& rule,
             const stages<T>& around, unsigned wanted, double* sums, States states) {
  each_row(of, first, last, [&](const span& row, std::ptrdiff_t from, std::ptrdiff_t end) {
    for (std::ptrdiff_t to; from < end; from = to) {
      lanes all[most_sums];
      to = end_of_chunk(row, from, end);
      each_part(row, from, to, all,
                [&](const span& a, std::ptrdiff_t i, std::ptrdiff_t n, lanes(&add)[most_sums]) {
                  add_wanted(a, i, n, rule, around, wanted, add, states);
                });
      for (const lanes& each : all) *sums++ = each.fold();
    }
  });
}

// ---- The norm

// Elements of a gradient for a loop over packs: as they are stored, or added up in a buffer, block
// by block. Calls work(g, i, n).
template <class T, class Work>
void each_block(const stream& g, std::ptrdiff_t first, std::ptrdiff_t n, const Work& work) {
  if (g.kind != kind::sum) return work(g, first, n);
  alignas(64) T room[block];
  constexpr kind own = std::is_same_v<T, float> ? kind::float32 : kind::float64;
  for (std::ptrdiff_t i = 0; i < n; i += block) {
    const std::ptrdiff_t size = std::min(block, n - i);
    add_up(g, first + i, size, room);
    work({room, own, sizeof(T)}, 0, size);
  }
}

template <class T> bool all_finite(const stream& g, std::ptrdiff_t first, std::ptrdiff_t n) {
  bool finite = true;
  each_block<T>(g, first, n, [&](const stream& s, std::ptrdiff_t from, std::ptrdiff_t size) {
    for (std::ptrdiff_t i = from; i < from + size; i += pack<T>::size) {
      const pack<T> d = load<T>(s, i);
      finite = finite && !any(d - d != T(0));
    }
  });
  return finite;
}

// Writes the sum of the squares of each chunk, returns whether all is finite. A sum of finite
// doubles may still overflow, so that only then each element is asked.
template <class T, bool scales> bool squares_of(const span& of, std::ptrdiff_t first,
                                                std::ptrdiff_t last, double scale, double*& sums) {
  bool finite = true;
  for (std::ptrdiff_t from = first, to; from < last; from = to) {
    lanes own[1];
    to = end_of_chunk(of, from, last);
    each_part(of, from, to, own,
              [&](const span& a, std::ptrdiff_t i, std::ptrdiff_t n, lanes(&sum)[1]) {
                each_block<T>(a.g, i, n, [&](const stream& g, std::ptrdiff_t k, std::ptrdiff_t m) {
                  add_squares_of<T, scales>(g, k, m, scale, sum[0]);
                });
              });
    *sums = own[0].fold();
    if (*sums - *sums != 0)
      each_part(of, from, to, [&](const span& a, std::ptrdiff_t i, std::ptrdiff_t n) {
        finite = finite && all_finite<T>(a.g, i, n);
      });
    ++sums;
  }
  return finite;
}

bool add_squares(const span& of, std::ptrdiff_t first, std::ptrdiff_t last, double scale,
                 double* sums) {
  const bool wide = of.x.kind == kind::float64;
  const auto add = scale == 1 ? (wide ? squares_of<double, false> : squares_of<float, false>)
                              : (wide ? squares_of<double, true> : squares_of<float, true>);
  bool finite = true;
  each_row(of, first, last, [&](const span& row, std::ptrdiff_t from, std::ptrdiff_t to) {
    span a{};  // no more than what is read, since the last elements are copied
    a.g = row.g;
    a.row_size = row.row_size;
    finite = add(a, from, to, scale, sums) && finite;
  });
  return finite;
}

// ---- What a factor makes of finite gradients

template <class T>
bool scales_finite_in(const span& of, std::ptrdiff_t first, std::ptrdiff_t last, const scalars& c) {
  const pack<T> scale = static_cast<T>(c.scale), clip = static_cast<T>(c.clip);
  pack<T> nothing = T(0);  // until a number isn't finite
  each_row(of, first, last, [&](const span& row, std::ptrdiff_t begin, std::ptrdiff_t end) {
    each_part(row, begin, end, [&](const span& a, std::ptrdiff_t from, std::ptrdiff_t n) {
      each_block<T>(a.g, from, n, [&](const stream& g, std::ptrdiff_t k, std::ptrdiff_t size) {
        for (std::ptrdiff_t i = k; i < k + size; i += pack<T>::size) {
          const pack<T> d = clamp(scale * load<T>(g, i), -clip, clip);
          nothing = nothing + (d - d);
        }
      });
    });
  });
  return !any(nothing != T(0));
}

bool scales_finite(const span& a, std::ptrdiff_t first, std::ptrdiff_t last, const scalars& c) {
  return a.x.kind == kind::float64 ? scales_finite_in<double>(a, first, last, c)
                                   : scales_finite_in<float>(a, first, last, c);
}

}  // namespace
}  // namespace schuss
