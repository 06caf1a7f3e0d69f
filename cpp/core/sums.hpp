// The first sweep, which writes nothing: what a step has to know of whole arrays, in a fixed tree.
//
// Sums are taken in double, of chunks from the array's start: element i of one adds its value to
// lane i mod 16, in order; lanes fold 8-4-2-1. The driver folds the chunks.
#pragma once

#include <cstddef>
#include <utility>

#include "elements.hpp"
#include "kernel.hpp"
#include "rules.hpp"
#include "stages.hpp"
#include "storage.hpp"

namespace schuss {
namespace {

// Element i adds its value, a double, to lane i mod 16, in order.
template <class Value, class... In>
[[gnu::always_inline]] inline void add_lanes(std::ptrdiff_t n, double* __restrict lanes,
                                             const Value value, const In* __restrict... in) {
  std::ptrdiff_t i = 0;
  for (; i + 16 <= n; i += 16)
#pragma GCC unroll 16
    for (int l = 0; l < 16; ++l) lanes[l] += value(in[i + l]...);
  for (int l = 0; i + l < n; ++l) lanes[l] += value(in[i + l]...);
}

// The sum of the lanes, as a tree.
double fold(double* lanes) {
  for (int half = 8; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] = lanes[l] + lanes[l + half];
  return lanes[0];
}

// ---- What a step would do

// Whether a rule measures something of its own.
template <class Rule> constexpr auto measures(int) -> decltype(&Rule::measure, bool()) {
  return true;
}
template <class Rule> constexpr bool measures(long) { return false; }

// The updates of a block, with its state left as it is.
template <class T, class Rule, class... State>
[[gnu::always_inline]] inline void updates(const Rule& rule, T scale, std::ptrdiff_t n,
                                           const T* __restrict x, const T* __restrict g,
                                           T* __restrict u, const State* __restrict... state) {
#pragma GCC ivdep
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const auto updated = [&](auto... s) { return rule(x[i], scale * g[i], s...); };
    u[i] = updated(state[i]...);
  }
}

// Adds what the rule itself measures of a block.
template <class T, class Rule, class... State>
[[gnu::always_inline]] inline void add_own(const Rule& rule, T scale, std::ptrdiff_t n,
                                           const T* __restrict x, const T* __restrict g,
                                           double (&lanes)[most_sums][16],
                                           const State* __restrict... state) {
  alignas(64) double p[block], q[block];
#pragma GCC ivdep
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const measurement own = rule.measure(x[i], scale * g[i], state[i]...);
    p[i] = own.p;
    q[i] = own.q;
  }
  const auto itself = [](double own) { return own; };
  add_lanes(n, lanes[4], itself, p);
  add_lanes(n, lanes[5], itself, q);
}

template <class T, class Rule, std::size_t... S>
[[gnu::always_inline]] inline void measure(const span& a, std::ptrdiff_t first, std::ptrdiff_t last,
                                           const Rule& rule, const scalars& c, unsigned wanted,
                                           double* sums, std::index_sequence<S...>) {
  const stages<T> around(c, plain);
  alignas(64) T x_buffer[block], g_buffer[block];
  [[maybe_unused]] alignas(64) T buffers[sizeof...(S) + 1][block];
  alignas(64) T u[block];

  for (std::ptrdiff_t from = first; from < last; from += chunk) {
    const std::ptrdiff_t to = last - from < chunk ? last : from + chunk;
    double lanes[most_sums][16] = {};
    for (std::ptrdiff_t i = from; i < to; i += block) {
      const std::ptrdiff_t n = to - i < block ? to - i : block;
      const T* const x = open(a.master.kind == kind::none ? a.x : a.master, i, n, x_buffer);
      const T* g = open(a.g, i, n, g_buffer);
      const T* const state[] = {open(a.state[S], i, n, buffers[S])..., nullptr};
      if (around.prepares) around.prepare(n, g, x, g_buffer);
      const T scale = around.prepares ? T(1) : around.by.scale;
      const auto scaled = [scale](T d) { return square(scale * d); };
      const auto agrees = [scale](T w, T d) { return w * (scale * d) > 0 ? 1.0 : 0.0; };
      if ((wanted & measured::xx) != 0) add_lanes(n, lanes[0], square<T>, x);
      if ((wanted & measured::gg) != 0) add_lanes(n, lanes[1], scaled, g);
      if ((wanted & (measured::uu | measured::agree)) != 0)
        updates(rule, scale, n, x, g, u, state[S]...);
      if ((wanted & measured::uu) != 0) add_lanes(n, lanes[2], square<T>, u);
      if ((wanted & measured::agree) != 0) add_lanes(n, lanes[3], agrees, u, g);
      if constexpr (measures<Rule>(0))
        if ((wanted & measured::own) != 0) add_own(rule, scale, n, x, g, lanes, state[S]...);
    }
    for (double* own : lanes) *sums++ = fold(own);
  }
}

// ---- The norm

// Writes the sum of the squares of each chunk, returns whether all is finite. A sum of finite
// doubles may still overflow, so that only then each element is asked.
template <class T, bool scales>
[[gnu::noinline]] bool squares_of(const stream& s, std::ptrdiff_t first, std::ptrdiff_t last,
                                  double scale, double* sums) {
  const auto value = [scale](T d) {
    return scales ? square(scale * static_cast<double>(d)) : square(d);
  };
  bool finite = true;
  for (std::ptrdiff_t from = first; from < last; from += chunk) {
    const std::ptrdiff_t to = last - from < chunk ? last : from + chunk;
    double lanes[16] = {};
    T buffer[block];
    for (std::ptrdiff_t i = from; i < to; i += block) {
      const std::ptrdiff_t n = to - i < block ? to - i : block;
      add_lanes(n, lanes, value, static_cast<const T*>(open(s, i, n, buffer)));
    }
    const double sum = fold(lanes);
    if (sum - sum != 0)
      for (std::ptrdiff_t i = from; i < to; ++i) {
        const T d = *open(s, i, 1, buffer);
        finite = finite && d - d == 0;
      }
    *sums++ = sum;
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
bool scales_finite_in(const span& a, std::ptrdiff_t first, std::ptrdiff_t last, const scalars& c) {
  const T scale = static_cast<T>(c.scale), clip = static_cast<T>(c.clip);
  bool finite = true;
  T buffer[block];
  for (std::ptrdiff_t from = first; from < last; from += block) {
    const std::ptrdiff_t n = last - from < block ? last - from : block;
    const T* const g = open(a.g, from, n, buffer);
    for (const T* d = g; d != g + n; ++d) {
      const T seen = clamp(scale * *d, -clip, clip);
      finite = finite && seen - seen == 0;
    }
  }
  return finite;
}

bool scales_finite(const span& a, std::ptrdiff_t first, std::ptrdiff_t last, const scalars& c) {
  return a.x.kind == kind::float64 ? scales_finite_in<double>(a, first, last, c)
                                   : scales_finite_in<float>(a, first, last, c);
}

}  // namespace
}  // namespace schuss
