// The stages around a rule, and the block loop, which is written once for all rules.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "elements.hpp"
#include "kernel.hpp"
#include "storage.hpp"

namespace schuss {
namespace {

// A stage: out = stage(in...), element by element; out may be one of them.
template <class T, class Stage, class... Stream>
[[gnu::always_inline]] inline void each(std::ptrdiff_t n, const Stage stage, T* out,
                                        const Stream*... in) {
#pragma GCC ivdep
  for (std::ptrdiff_t i = 0; i < n; ++i) out[i] = stage(in[i]...);
}

// What the rule's loop has room for while it waits for a division and a root: scaling and keeping,
// where 1 changes no bit, and the term of one kind of decay. Every instruction more leaves fewer
// elements under way at a time: with all stages in it AdamW takes twice as long as with a loop for
// each.
enum form { plain, coupled, masked, judged };

template <class T> struct factors {
  T scale, l2, keep, tiny;
  T agree, oppose, against;  // where signs are judged: of u, and the keep where u and x differ
};

template <form how, class T, class Rule, class... State>
[[gnu::always_inline]] inline void apply(const Rule& rule, const factors<T> by, std::ptrdiff_t n,
                                         T* __restrict x, const T* __restrict g,
                                         State* __restrict... state) {
  // gcc 12 doesn't heed __restrict on a parameter pack: without this each loop has a checked twin.
#pragma GCC ivdep
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const T w = x[i];
    T d = by.scale * g[i], keep = by.keep;
    if constexpr (how == coupled) d = d + by.l2 * w;
    // On copies of the state: gcc stores what a reference into memory leads to twice, and reads it
    // back in between.
    const auto updated = [&](auto... s) {
      const T u = rule(w, d, s...);
      ((state[i] = flush(s, by.tiny)), ...);
      return u;
    };
    T u = updated(state[i]...);
    if constexpr (how == judged) u = (u * d > 0 ? by.agree : by.oppose) * u;
    if constexpr (how == judged || how == masked) keep = u * w > 0 ? by.keep : by.against;
    x[i] = keep * w - u;
  }
}

// The stages around the rule, once for all rules, with their scalars rounded to the compute type.
template <class T> struct stages {
  const scalars& c;
  factors<T> by;
  form how;
  bool prepares;

  stages(const scalars& set, form loop)
      : c(set),
        by{static_cast<T>(c.scale),
           static_cast<T>(c.l2),
           static_cast<T>(c.keep),
           c.flush != 0 ? std::numeric_limits<T>::min() : T(0),
           static_cast<T>(c.agree),
           static_cast<T>(c.oppose),
           c.masked != 0 ? T(1) : static_cast<T>(c.keep)},
        how(loop),
        prepares(clips() || c.l1 != 0 || (c.l2 != 0 && how != coupled)) {}

  bool finishes(const span& a) const {
    return c.after != 1 || c.threshold != 0 || bounded() || is(a.low) || is(a.average) ||
           narrow(a.x.kind) || c.zero_grad != 0;
  }

  // The l1 term comes behind that of l2, and takes it out of the rule's loop.
  static form form_of(const scalars& c) {
    if (c.agree != 1 || c.oppose != 1) return judged;
    if (c.masked != 0) return masked;
    return c.l2 != 0 && c.l1 == 0 ? coupled : plain;
  }
  static bool is(const stream& s) { return s.kind != kind::none; }
  bool clips() const { return c.clip < std::numeric_limits<double>::infinity(); }
  bool bounded() const {
    constexpr double inf = std::numeric_limits<double>::infinity();
    return c.low > -inf || c.high < inf;
  }

  // Stages 1 to 3: turns g to the gradient of a block that the rule is to see, in the buffer.
  [[gnu::noinline]] void prepare(std::ptrdiff_t n, const T*& g, const T* x, T* buffer) const {
    const T scale = by.scale, clip = static_cast<T>(c.clip);
    const T l2 = by.l2, l1 = static_cast<T>(c.l1);
    if (scale != 1 || clips()) {
      each(n, [scale, clip](T d) { return clamp(scale * d, -clip, clip); }, buffer, g);
      g = buffer;
    }
    if (c.l2 != 0 && how != coupled) {
      each(n, [l2](T d, T w) { return d + l2 * w; }, buffer, g, x);
      g = buffer;
    }
    if (c.l1 != 0) {
      each(n, [l1](T d, T w) { return d + l1 * sign(w); }, buffer, g, x);
      g = buffer;
    }
  }

  // Stages 6 to 11, of the block from i on.
  [[gnu::noinline]] void finish(const span& a, std::ptrdiff_t i, std::ptrdiff_t n, T* x) const {
    const T after = static_cast<T>(c.after), threshold = static_cast<T>(c.threshold);
    if (c.after != 1) each(n, [after](T w) { return after * w; }, x, x);
    if (c.threshold != 0) each(n, [threshold](T w) { return shrink(w, threshold); }, x, x);
    T one[block], other[block];
    if (is(a.low)) {
      each(
          n, [](T w, T low, T high) { return clamp(w, low, high); }, x, x, open(a.low, i, n, one),
          open(a.high, i, n, other));
    } else if (bounded()) {
      const T low = least_from<T>(c.low, a.x.kind), high = -least_from<T>(-c.high, a.x.kind);
      each(n, [low, high](T w) { return clamp(w, low, high); }, x, x);
    }
    if (is(a.average)) {
      const T share = static_cast<T>(c.average), tiny = by.tiny;
      const auto follow = [share, tiny](T e, T w) { return flush(e + share * (w - e), tiny); };
      T* const average = static_cast<T*>(address(a.average, i));
      if (share == 1)  // e + (w - e) is rounded
        each(n, [tiny](T w) { return flush(w, tiny); }, average, x);
      else
        each(n, follow, average, average, x);
    }
    if constexpr (std::is_same_v<T, float>)
      if (narrow(a.x.kind)) {
        const bool dithers = c.stochastic != 0;
        const auto position = static_cast<std::uint32_t>(a.position + i);
        const auto key = static_cast<std::uint32_t>(c.key);
        if (dithers) storage_of(a.x.kind).dither(x, n, position, key, one);
        close(a.x, i, n, dithers ? one : x);
      }
    if (c.zero_grad != 0) std::memset(address(a.g, i), 0, static_cast<std::size_t>(n * a.g.width));
  }
};

// The block loop: brings each block of each stream to the compute type, prepares the gradient,
// applies the rule, finishes the parameter and puts it back. What is not asked for costs one
// predictable branch a block.
template <class T, class Rule, std::size_t... S>
[[gnu::always_inline]] inline void blocks(const span& a, std::ptrdiff_t first, std::ptrdiff_t last,
                                          const Rule& rule, const stages<T>& around,
                                          std::index_sequence<S...>) {
  alignas(64) T x_buffer[block], g_buffer[block];
  [[maybe_unused]] alignas(64) T buffers[sizeof...(S) + 1][block];
  const bool finishes = around.finishes(a);

  // Half a block at a time where 16 bits are written: far beyond the caches AdamW all in bfloat16
  // then takes 1.4 of its float32 step, in whole blocks 1.9.
  const bool halves = narrow(a.x.kind) || (... || narrow(a.state[S].kind));
  const std::ptrdiff_t step = halves ? block / 2 : block;
  for (std::ptrdiff_t i = first; i < last; i += step) {
    const std::ptrdiff_t n = last - i < step ? last - i : step;
    T* const x = open(a.master.kind == kind::none ? a.x : a.master, i, n, x_buffer);
    const T* g = open(a.g, i, n, g_buffer);
    T* const state[] = {open(a.state[S], i, n, buffers[S])..., nullptr};
    factors<T> by = around.by;
    if (around.prepares) {
      around.prepare(n, g, x, g_buffer);
      by.scale = 1;
    }
    if (around.how == plain) apply<plain>(rule, by, n, x, g, state[S]...);
    if (around.how == coupled) apply<coupled>(rule, by, n, x, g, state[S]...);
    if (around.how == masked) apply<masked>(rule, by, n, x, g, state[S]...);
    if (around.how == judged) apply<judged>(rule, by, n, x, g, state[S]...);
    (close(a.state[S], i, n, state[S]), ...);
    if (finishes) around.finish(a, i, n, x);
  }
}

}  // namespace
}  // namespace schuss
