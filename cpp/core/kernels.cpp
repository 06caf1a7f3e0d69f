// The block loop and the table of rules of one instruction set.
//
// Compiled once for each instruction set, with that set's flags and SCHUSS_ISA as its name
// (CMakeLists.txt). Everything but the table has internal linkage and no function of the standard
// library is left standing: an object's code, picked by the linker for another one's, would be an
// illegal instruction on an older processor.
#include "kernel.hpp"
#include "rules.hpp"
#include "storage.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace schuss {
namespace {

// How many state arrays a rule has, from its call operator T(T x, T g, T& state...).
template <class> struct states_of;
template <class T, class Rule, class... State>
struct states_of<T (Rule::*)(T, T, State&...) const> {
  using type = std::make_index_sequence<sizeof...(State)>;
};

// ---- One element, stage by stage. A NaN comes through every one of them.

template <class T> T flushed(T a, T tiny) { return std::fabs(a) < tiny ? T(0) : a; }

template <class T> T shrink(T a, T threshold) { return a - clamp(a, -threshold, threshold); }

// 32 random bits of a position and a step's key: two rounds of a mixer whose every output bit
// depends on every input bit ("lowbias32", Wellons 2018).
inline std::uint32_t mix(std::uint32_t h) {
  h = (h ^ (h >> 16)) * 0x7feb352d;
  h = (h ^ (h >> 15)) * 0x846ca68b;
  return h ^ (h >> 16);
}

// x rounded to what 16 bits can hold: up with the probability of its distance from below, so that
// what they hold already stays. Where the spacing is that of float16's subnormal numbers, 2^-24,
// the sum with 1/2 finds the nearest; all that follows is exact.
template <bool half> float dither(float x, std::uint32_t random) {
  const std::uint32_t dropped = half ? 0x1fff : 0xffff, u = bits_of(x);
  const float normal = float_of((u + (random & dropped)) & ~dropped);
  const float size = std::fabs(x), nearest = (size + 0.5f) - 0.5f, beyond = size - nearest;
  const float least = static_cast<float>(static_cast<std::int32_t>(random >> 8)) * 0x1p-48f;
  const float up = beyond > least ? 0x1p-24f : 0.0f;
  const float down = beyond <= least - 0x1p-24f ? 0x1p-24f : 0.0f;
  const float small = float_of(bits_of((nearest + up) - down) | (u & 0x80000000));
  const float finite = half && size < 0x1p-14f ? small : normal;
  return size <= std::numeric_limits<float>::max() ? finite : x;
}

// ---- Blocks of the compute type

void* address(const stream& s, std::ptrdiff_t i) {
  return static_cast<char*>(s.data) + i * s.width;
}

// Elements of a stream from i on: where they lie, or widened into the buffer.
template <class T> T* open(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n, T* buffer) {
  if (s.width != 2) return static_cast<T*>(address(s, i));
  if constexpr (std::is_same_v<T, float>) widen_block(s.kind, address(s, i), n, buffer);
  return buffer;
}

// Puts them back where they were widened.
template <class T> void close(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n, const T* from) {
  if constexpr (std::is_same_v<T, float>)
    if (s.width == 2) narrow_block(s.kind, from, n, address(s, i));
}

// A stage: out = stage(in...), element by element; out may be one of them.
template <class T, class Stage, class... Stream>
[[gnu::always_inline]] inline void each(std::ptrdiff_t n, const Stage stage, T* out,
                                        const Stream*... in) {
#pragma GCC ivdep
  for (std::ptrdiff_t i = 0; i < n; ++i) out[i] = stage(in[i]...);
}

// x rounded stochastically, with the random numbers of its elements' positions.
template <bool half> [[gnu::always_inline]] inline void dithered(std::ptrdiff_t n, const float* x,
                                                                 std::ptrdiff_t position,
                                                                 std::uint32_t key, float* out) {
  const auto start = static_cast<std::uint32_t>(position);
  for (std::ptrdiff_t i = 0; i < n; ++i)
    out[i] = dither<half>(x[i], mix(mix(start + static_cast<std::uint32_t>(i)) + key));
}

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

template <class T> double square(T a) { return static_cast<double>(a) * static_cast<double>(a); }

double folded(double* lanes) {
  for (int half = 8; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] = lanes[l] + lanes[l + half];
  return lanes[0];
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
      ((state[i] = flushed(s, by.tiny)), ...);
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
           a.x.width == 2 || c.zero_grad != 0;
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
      const T low = static_cast<T>(c.low), high = static_cast<T>(c.high);
      each(n, [low, high](T w) { return clamp(w, low, high); }, x, x);
    }
    if (is(a.average)) {
      const T share = static_cast<T>(c.average), tiny = by.tiny;
      const auto follow = [share, tiny](T e, T w) { return flushed(e + share * (w - e), tiny); };
      T* const average = static_cast<T*>(address(a.average, i));
      each(n, follow, average, average, x);
    }
    if constexpr (std::is_same_v<T, float>)
      if (a.x.width == 2) {
        const auto key = static_cast<std::uint32_t>(c.key);
        const std::ptrdiff_t position = a.position + i;
        if (c.stochastic != 0 && a.x.kind == kind::float16)
          dithered<true>(n, x, position, key, one);
        if (c.stochastic != 0 && a.x.kind != kind::float16)
          dithered<false>(n, x, position, key, one);
        narrow_block(a.x.kind, c.stochastic != 0 ? one : x, n, address(a.x, i));
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
  const bool halves = a.x.width == 2 || (... || (a.state[S].width == 2));
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

// ---- A look at what a step would do

// Whether a rule has a look of its own.
template <class Rule> constexpr auto looks(int) -> decltype(&Rule::look, bool()) { return true; }
template <class Rule> constexpr bool looks(long) { return false; }

// The updates of a block.
template <class T, class Rule, class... State>
[[gnu::always_inline]] inline void foresee(const Rule& rule, T scale, std::ptrdiff_t n,
                                           const T* __restrict x, const T* __restrict g,
                                           T* __restrict u, const State* __restrict... state) {
#pragma GCC ivdep
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const auto updated = [&](auto... s) { return rule(x[i], scale * g[i], s...); };
    u[i] = updated(state[i]...);
  }
}

// Adds what the rule's own look at a block gives.
template <class T, class Rule, class... State>
[[gnu::always_inline]] inline void regard(const Rule& rule, T scale, std::ptrdiff_t n,
                                          const T* __restrict x, const T* __restrict g,
                                          double (&lanes)[most_sums][16],
                                          const State* __restrict... state) {
  alignas(64) T p[block], q[block];
#pragma GCC ivdep
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const look<T> own = rule.look(x[i], scale * g[i], state[i]...);
    p[i] = own.p;
    q[i] = own.q;
  }
  const auto itself = [](T own) { return static_cast<double>(own); };
  add_lanes(n, lanes[4], itself, p);
  add_lanes(n, lanes[5], itself, q);
}

template <class T, class Rule, std::size_t... S>
[[gnu::always_inline]] inline void look_at(const span& a, std::ptrdiff_t first, std::ptrdiff_t last,
                                           const Rule& rule, const scalars& c, int wanted,
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
      if ((wanted & 1) != 0) add_lanes(n, lanes[0], square<T>, x);
      if ((wanted & 2) != 0) add_lanes(n, lanes[1], scaled, g);
      if ((wanted & 12) != 0) foresee(rule, scale, n, x, g, u, state[S]...);
      if ((wanted & 4) != 0) add_lanes(n, lanes[2], square<T>, u);
      if ((wanted & 8) != 0) add_lanes(n, lanes[3], agrees, u, g);
      if constexpr (looks<Rule>(0))
        if ((wanted & 16) != 0) regard(rule, scale, n, x, g, lanes, state[S]...);
    }
    for (double* own : lanes) *sums++ = folded(own);
  }
}

// ---- The norm

// Blocks of `chunk` elements from the array's start: element i adds its square, in double, to lane
// i mod 16, in order; lanes fold 8-4-2-1. Writes the sum of each block, returns whether all is
// finite. A sum of finite doubles may still overflow, so that only then each element is asked.
bool add_squares(const stream& s, std::ptrdiff_t first, std::ptrdiff_t last, double* sums) {
  const auto over = [&](auto zero) {
    using T = decltype(zero);
    bool finite = true;
    for (std::ptrdiff_t from = first; from < last; from += chunk) {
      const std::ptrdiff_t to = last - from < chunk ? last : from + chunk;
      double lanes[16] = {};
      T buffer[block];
      for (std::ptrdiff_t i = from; i < to; i += block) {
        const std::ptrdiff_t n = to - i < block ? to - i : block;
        add_lanes(n, lanes, square<T>, static_cast<const T*>(open(s, i, n, buffer)));
      }
      const double sum = folded(lanes);
      if (sum - sum != 0)
        for (std::ptrdiff_t i = from; i < to; ++i) {
          const T d = *open(s, i, 1, buffer);
          finite = finite && d - d == 0;
        }
      *sums++ = sum;
    }
    return finite;
  };
  return s.kind == kind::float64 ? over(double()) : over(float());
}

template <template <class> class Rule> struct kernels_of {
  static constexpr std::size_t scalar_count = sizeof(Rule<float>) / sizeof(float);
  using states = typename states_of<decltype(&Rule<float>::operator())>::type;
  static_assert(scalar_count <= most_scalars && states::size() <= most_states);

  template <class T, std::size_t... C>
  static Rule<T> with(const scalars& c, std::index_sequence<C...>) {
    return {static_cast<T>(c.rule_scalars[C])...};
  }
  using indices = std::make_index_sequence<scalar_count>;

  template <class T> static void run(const span* a, const span* end, std::ptrdiff_t first,
                                     std::ptrdiff_t last, const scalars& c) {
    const Rule<T> rule = with<T>(c, indices());
    const stages<T> around(c, stages<T>::form_of(c));
    for (; a != end; ++a) {
      blocks<T>(*a, first, a + 1 == end ? last : a->size, rule, around, states());
      first = 0;
    }
  }
  template <class T> static void look(const span& a, std::ptrdiff_t first, std::ptrdiff_t last,
                                      const scalars& c, int wanted, double* sums) {
    look_at<T>(a, first, last, with<T>(c, indices()), c, wanted, sums, states());
  }
};

constexpr rule rules[] = {
#define SCHUSS_ENTRY(name)                             \
  {#name,                                              \
   static_cast<int>(kernels_of<name>::states::size()), \
   static_cast<int>(kernels_of<name>::scalar_count),   \
   looks<name<float>>(0),                              \
   kernels_of<name>::run<float>,                       \
   kernels_of<name>::run<double>,                      \
   kernels_of<name>::look<float>,                      \
   kernels_of<name>::look<double>},
    SCHUSS_RULES(SCHUSS_ENTRY)
#undef SCHUSS_ENTRY
};

}  // namespace

// The one exported symbol, named after the instruction set: schuss_kernels_avx2.
#define SCHUSS_EXPORT(isa) SCHUSS_TABLE(isa)
#define SCHUSS_TABLE(isa)                                                                     \
  extern const table schuss_kernels_##isa;                                                    \
  const table schuss_kernels_##isa = {#isa,        rules,       sizeof(rules) / sizeof(rule), \
                                      add_squares, widen_block, narrow_block};
SCHUSS_EXPORT(SCHUSS_ISA)

}  // namespace schuss
