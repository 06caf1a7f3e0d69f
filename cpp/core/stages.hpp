// A step of one array: the stages around a rule in their order, and the loop, written once for all
// rules.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "elements.hpp"
#include "kernel.hpp"
#include "lanes.hpp"
#include "layout.hpp"
#include "pack.hpp"
#include "rows.hpp"
#include "storage.hpp"

namespace schuss {
namespace {

constexpr double infinite = std::numeric_limits<double>::infinity();

// A loop over whole packs: out = stage(in...); out may be one of them.
template <class T, class Stage, class... In>
SCHUSS_INLINE void each(std::ptrdiff_t n, const Stage& stage, T* out, const In*... in) {
  for (std::ptrdiff_t i = 0; i < n; i += pack<T>::size) stage(pack<T>::from(in + i)...).to(out + i);
}

// What the rule's loop does itself: scaling and keeping, where 1 changes no bit, and of the stages
// that cost least there one, where no other is asked for: the term of a kind of decay, bounds that
// are numbers, zero gradients. All else has loops of its own, over blocks: every instruction more
// leaves fewer elements under way while others wait for a division and a root, and a branch in the
// loop takes the time of several; with all stages and kinds as branches in it, AdamW took 2.1 to
// 3.6 times as long (bench/README.md).
// Where sums are reported they are taken in the loop, whose numbers wait for a division anyway.
enum form { plain, coupled, masked, judged, bounded, cleared, reported, judged_and_reported };

constexpr bool reports(form how) { return how == reported || how == judged_and_reported; }

// The first n numbers of a pack; zeros for the others.
template <class T> [[gnu::noinline, gnu::cold]] pack<T> only(std::ptrdiff_t n, pack<T> of) {
  T places[pack<T>::size];
  for (std::ptrdiff_t i = 0; i < pack<T>::size; ++i) places[i] = static_cast<T>(i);
  return select(pack<T>::from(places) < pack<T>(static_cast<T>(n)), of, pack<T>(T(0)));
}

// The sums of squares that a step reports of a block: in its own type, one for each lane of the
// chunk, to whose doubles they are added then. In double from the first on they took as long as the
// rule. It is as exact as the root of so few squares has to be.
template <class T> struct squares_of_block {
  pack<T> g[sixteen / pack<T>::size], u[sixteen / pack<T>::size], x[sixteen / pack<T>::size];

  squares_of_block() {
    for (std::ptrdiff_t p = 0; p < sixteen / pack<T>::size; ++p) g[p] = u[p] = x[p] = T(0);
  }
  // Adds a pack of elements, of which only the first n count.
  SCHUSS_INLINE void add(std::ptrdiff_t lane, std::ptrdiff_t n, pack<T> d, pack<T> move,
                         pack<T> w) {
    if (__builtin_expect(n < pack<T>::size, 0))
      d = only(n, d), move = only(n, move), w = only(n, w);
    const std::ptrdiff_t p = lane / pack<T>::size;
    g[p] = g[p] + d * d, u[p] = u[p] + move * move, x[p] = x[p] + w * w;
  }
  void to(lanes* sums) const { sums[0].add<T>(g), sums[1].add<T>(u), sums[2].add<T>(x); }
};

template <class T> struct factors {
  pack<T> scale, l2, keep, tiny;
  // Where signs are judged: of u, and what is kept where u and x differ.
  pack<T> agree, oppose, against;
  pack<T> low, high;
  // Where sums are reported: those of the block that has begun, and of the ones before it in its
  // chunk; and how many elements count.
  squares_of_block<T>* squares = nullptr;
  lanes* sums = nullptr;
  std::ptrdiff_t valid = 0;
};

// Whether a rule's state array is rounded by chance where it is stored in this kind.
template <class T, kind S, class Rule, std::size_t s> constexpr bool by_chance() {
  if constexpr (std::is_same_v<T, float> && narrow(S)) {
    // Without asking for its size clang does not know the array.
    static_assert(s < sizeof(Rule::states) / sizeof(trait));
    return by_chance(Rule::states[s], S);
  } else {
    return false;
  }
}

// Stores a pack of it, and goes on to the next one's dither.
template <class T, kind S, class Rule, std::size_t s>
SCHUSS_INLINE void put(void* data, std::ptrdiff_t i, pack<T> from, words& random) {
  if constexpr (by_chance<T, S, Rule, s>()) {
    store<S>(data, i, from, random);
    random += between_packs;
  } else {
    store<T, S>(data, i, from);
  }
}

// The rule's loop over n elements, whole packs, stored in these kinds. Its scalars are copies,
// which a store through a pointer can't change.
template <class T, form how, kind X, kind G, kind S, class Rule, std::size_t... I>
SCHUSS_INLINE void apply(const Rule rule, const factors<T> by, std::ptrdiff_t n, void* x, void* g,
                         [[maybe_unused]] void* const* state, [[maybe_unused]] const chance& from,
                         std::index_sequence<I...>) {
  using number = pack<T>;
  [[maybe_unused]] void* const held[] = {state[I]..., nullptr};
  [[maybe_unused]] words random[] = {by_chance<T, S, Rule, I>() ? from.of(I, 0) : words()...,
                                     words()};
  [[maybe_unused]] squares_of_block<T> squares;
  const auto one = [&](std::ptrdiff_t i, [[maybe_unused]] std::ptrdiff_t lane) {
    const number w = load<T, X>(x, i);
    number d = by.scale * load<T, G>(g, i), keep = by.keep;
    if constexpr (how == coupled) d = d + by.l2 * w;
    [[maybe_unused]] number s[] = {load<T, S>(held[I], i)..., w};
    number u = rule(w, d, s[I]...);
    (put<T, S, Rule, I>(held[I], i, flush(s[I], by.tiny), random[I]), ...);
    constexpr bool judges = how == judged || how == judged_and_reported;
    if constexpr (judges) u = select(u * d > 0, by.agree, by.oppose) * u;
    if constexpr (judges || how == masked) keep = select(u * w > 0, by.keep, by.against);
    if constexpr (reports(how)) squares.add(lane, by.valid - i, d, u, w);
    const number moved = keep * w - u;
    store<T, X>(x, i, how == bounded ? clamp(moved, by.low, by.high) : moved);
    if constexpr (how == cleared) store<T, G>(g, i, number(0));
  };
  if constexpr (reports(how)) {
    // What begins within a block is its end.
    for (std::ptrdiff_t i = 0; i < n; i += block) {
      const std::ptrdiff_t size = n - i < block ? n - i : block;
      squares = *by.squares;
      each_pack<T>(i, size, one);
      if (size == block) squares.to(by.sums), squares = squares_of_block<T>();
      *by.squares = squares;
    }
  } else {
    for (std::ptrdiff_t i = 0; i < n; i += number::size) one(i, 0);
  }
}

template <class T> using applied = void (*)(const void* rule, const factors<T>&, std::ptrdiff_t n,
                                            void* x, void* g, void* const* state, const chance&);

template <class T> struct loop {
  kind x, g, state;
  applied<T> run;
};

// The loops of a rule: one of each form in the compute type, and plain ones that take bfloat16 or
// float16 as they are, those of more streams first. What no loop takes is brought to the compute
// type in a buffer.
template <class T> struct loops {
  int states;
  const trait* traits;
  const loop<T>* wide;
  const loop<T>*bfloat16, *float16;
};
constexpr int of_16_bits = 4;

// The stages around the rule, once for all rules, with their scalars rounded to the compute type.
template <class T> struct stages {
  using number = pack<T>;

  const scalars& c;
  factors<T> by;
  number clip, l1;
  form how;
  bool clips, decays, pulls, prepares, fades;

  [[gnu::noinline]] explicit stages(const scalars& set, bool reports = false)
      : c(set),
        by{static_cast<T>(c.scale),
           static_cast<T>(c.l2),
           static_cast<T>(c.keep),
           c.flush != 0 ? std::numeric_limits<T>::min() : T(0),
           static_cast<T>(c.agree),
           static_cast<T>(c.oppose),
           c.masked != 0 ? T(1) : static_cast<T>(c.keep),
           least_from<T>(c.low, kind::none),
           -least_from<T>(-c.high, kind::none)},
        clip(static_cast<T>(c.clip)),
        l1(static_cast<T>(c.l1)),
        how(form_of(set, reports)),
        clips(c.clip < infinite),
        decays(c.l2 != 0),
        pulls(c.l1 != 0),
        prepares(clips || pulls || (decays && how != coupled)),
        fades(c.fade_x != 1 || c.drift != 0 || c.fade_0 != 1 || c.fade_1 != 1) {}

  // Clipping comes before the term of l2, and that of l1 behind: they take it out of the rule's
  // loop.
  static form form_of(const scalars& c, bool reports) {
    const bool judges = c.agree != 1 || c.oppose != 1;
    if (reports) return judges || c.masked != 0 ? judged_and_reported : reported;
    if (judges) return judged;
    if (c.masked != 0) return masked;
    return c.l2 != 0 && c.l1 == 0 && !(c.clip < infinite) ? coupled : plain;
  }
  bool bounds() const { return c.low > -infinite || c.high < infinite; }

  // Whether stages follow that no loop of a rule knows.
  bool follow(const span& a) const {
    return c.after != 1 || c.threshold != 0 || is(a.low) || is(a.average) || is(a.master) ||
           (narrow(a.x.kind) && c.stochastic != 0);
  }

  // Where chance comes from for elements from i on.
  chance chance_at(const span& a, std::ptrdiff_t i) const {
    return {static_cast<std::uint32_t>(a.position + i), static_cast<std::uint32_t>(c.key)};
  }

  // Whether any stage follows the rule's loop.
  bool finishes(const span& a) const { return follow(a) || bounds() || c.zero_grad != 0; }

  // The form in which the rule's loop takes the only stage behind it, if it can.
  form closing(const span& a) const {
    if (how != plain || prepares || follow(a) || narrow(a.x.kind) || narrow(a.g.kind) ||
        a.g.kind == kind::sum)
      return how;
    if (c.zero_grad != 0) return bounds() ? how : cleared;
    return bounds() ? bounded : how;
  }

  // What steps without a gradient would have done meanwhile, in the compute type.
  [[gnu::noinline]] void fade(std::ptrdiff_t n, T* x, void* const* state, int states) const {
    const number fade_x = static_cast<T>(c.fade_x), drift = static_cast<T>(c.drift);
    T* const s = states > 0 ? static_cast<T*>(state[0]) : x;
    if (c.drift != 0)
      each(n, [=](number w, number m) { return fade_x * w - drift * m; }, x, x, s);
    else if (c.fade_x != 1)
      each(n, [=](number w) { return fade_x * w; }, x, x);
    const double by_state[] = {c.fade_0, c.fade_1};
    for (int i = 0; i < 2 && i < states; ++i) {
      const number by = static_cast<T>(by_state[i]);
      T* const one = static_cast<T*>(state[i]);
      if (by_state[i] != 1) each(n, [=](number m) { return by * m; }, one, one);
    }
  }

  // Stages 1 to 3, of which at least one is asked for: the gradient that the rule is to see.
  [[gnu::noinline]] void prepare(std::ptrdiff_t n, stream g, std::ptrdiff_t from, const T* x,
                                 T* out) const {
    if (g.kind == kind::sum) {
      constexpr kind own = std::is_same_v<T, float> ? kind::float32 : kind::float64;
      g = {add_up(g, from, n, out), own, sizeof(T)};
      from = 0;
    }
    const auto whole = [&](auto stage) {
      for (std::ptrdiff_t i = 0; i < n; i += number::size)
        stage(load<T>(g, from + i), number::from(x + i)).to(out + i);
    };
    // Copies, which a store through a pointer can't change.
    const number scale = by.scale, l2 = by.l2, bound = clip, pull = l1;
    if (clips)
      whole([=](number d, number) { return clamp(scale * d, -bound, bound); });
    else if (decays)
      whole([=](number d, number w) { return scale * d + l2 * w; });
    else
      whole([=](number d, number w) { return scale * d + pull * sign(w); });
    if (clips && decays) each(n, [=](number d, number w) { return d + l2 * w; }, out, out, x);
    if (pulls && (clips || decays))
      each(n, [=](number d, number w) { return d + pull * sign(w); }, out, out, x);
  }

  // Stages 6 to 11, of the block from i on.
  [[gnu::noinline]] void finish(const span& a, std::ptrdiff_t i, std::ptrdiff_t n, T* x) const {
    const number after = static_cast<T>(c.after), threshold = static_cast<T>(c.threshold);
    if (c.after != 1) each(n, [=](number w) { return after * w; }, x, x);
    if (c.threshold != 0) each(n, [=](number w) { return shrink(w, threshold); }, x, x);
    if (is(a.low)) {
      for (std::ptrdiff_t k = 0; k < n; k += number::size)
        clamp(number::from(x + k), load<T>(a.low, i + k), load<T>(a.high, i + k)).to(x + k);
    } else if (bounds()) {
      const number low = least_from<T>(c.low, a.x.kind), high = -least_from<T>(-c.high, a.x.kind);
      each(n, [=](number w) { return clamp(w, low, high); }, x, x);
    }
    if (is(a.average)) {
      const number share = static_cast<T>(c.average), tiny = by.tiny;
      T* const average = at<T>(a.average, i);
      if (c.average == 1)  // e + (w - e) is rounded
        each(n, [=](number w) { return flush(w, tiny); }, average, x);
      else
        each(
            n, [=](number e, number w) { return flush(e + share * (w - e), tiny); }, average,
            average, x);
    }
    if (a.master.kind == kind::remainder)  // x is a part of it
      close(a.master, i, n, x);
    else if (narrow(a.x.kind))
      close(a.x, i, n, x, c.stochastic != 0 ? point : exact, chance_at(a, 0), -1, a.size);
    if (c.zero_grad != 0) clear(a.g, i, n);
  }
};

// The loop of a rule that takes most of an array as it is stored.
template <class T>
const loop<T>& fitting(const span& a, form how, kind x, kind g, const loops<T>& of) {
  constexpr kind own = std::is_same_v<T, float> ? kind::float32 : kind::float64;
  kind state = of.states > 0 ? a.state[0].kind : g;
  for (int s = 1; s < of.states; ++s)
    if (a.state[s].kind != state) state = own;
  if (has_codes(state)) state = own;  // which are opened
  if (how == plain && (narrow(g) || narrow(state))) {
    const bool half = (narrow(state) ? state : g) == kind::float16;
    const loop<T>* const list = half ? of.float16 : of.bfloat16;
    for (const loop<T>* one = list; one != list + of_16_bits; ++one)
      if ((one->x == x || one->x == own) && (one->g == g || one->g == own) &&
          (one->state == state || one->state == own))
        return *one;
  }
  return of.wide[how];
}

// The step of elements first <= i < last where a loop takes them as they are. The last ones, fewer
// than a pack, go through copies with room for one: many arrays have no others.
template <class T> void direct(const span& a, std::ptrdiff_t first, std::ptrdiff_t last,
                               const void* rule, int states, applied<T> run,
                               const stages<T>& around) {
  const std::ptrdiff_t left = (last - first) % pack<T>::size, whole = last - left;
  const stream* of[2 + most_states] = {&a.x, &a.g};
  for (int s = 0; s < states; ++s) of[2 + s] = a.state + s;
  void* at_first[2 + most_states];
  for (int s = 0; s < 2 + states; ++s) at_first[s] = at<char>(*of[s], first * of[s]->width);
  if (first < whole)
    run(rule, around.by, whole - first, at_first[0], at_first[1], at_first + 2,
        around.chance_at(a, first));
  if (left == 0) return;

  alignas(register_bytes) char rooms[2 + most_states][register_bytes];
  void* room[2 + most_states];
  // In words: a call of memcpy for each stream takes longer than all else.
  const auto copy_words = [](char* to, const char* from, std::ptrdiff_t bytes) {
    std::ptrdiff_t i = 0;
    for (; i + 4 <= bytes; i += 4) __builtin_memcpy(to + i, from + i, 4);
    if (i < bytes) __builtin_memcpy(to + i, from + i, 2);
  };
  for (int s = 0; s < 2 + states; ++s) {
    pack<T>(T(0)).to(rooms[s]);
    copy_words(rooms[s], at<char>(*of[s], whole * of[s]->width), left * of[s]->width);
    room[s] = rooms[s];
  }
  run(rule, around.by, pack<T>::size, room[0], room[1], room + 2, around.chance_at(a, whole));
  for (int s = 0; s < 2 + states; ++s)
    if (s != 1) copy_words(at<char>(*of[s], whole * of[s]->width), rooms[s], left * of[s]->width);
}

// How a span is stepped, as far as its kinds decide.
template <class T> struct way {
  kind g;
  form how;
  bool finishes, opens_x, opens_g, opens, is_direct;
  std::ptrdiff_t whole;  // elements that go through a loop together
  const loop<T>* taken;

  [[gnu::noinline]] way(const span& a, const loops<T>& of, const stages<T>& around)
      : g(a.g.kind), how(around.closing(a)) {
    constexpr kind own = std::is_same_v<T, float> ? kind::float32 : kind::float64;
    finishes = how == around.how && around.finishes(a);
    taken = around.fades
                ? of.wide + how
                : &fitting(a, how, finishes ? own : a.x.kind, around.prepares ? own : a.g.kind, of);
    opens_x = (is(a.master) ? a.master : a.x).kind != taken->x;
    opens_g = a.g.kind != taken->g;
    opens = opens_x || opens_g || around.fades;
    bool codes = false;
    for (int s = 0; s < of.states; ++s) {
      opens = opens || a.state[s].kind != taken->state;
      codes = codes || has_codes(a.state[s].kind);
    }
    is_direct = !opens && !around.prepares && !finishes && how != cleared && !reports(how);
    whole = codes ? coded : reports(how) ? sixteen : pack<T>::size;
  }
};

// The loop over blocks, once for all rules: brings what the rule's loop doesn't take to the compute
// type, prepares the gradient, applies the rule, finishes the parameter and puts it back. Where
// sums are reported, `squares` and `sums` are where they go, and only the first `valid` elements
// count.
template <class T>
[[gnu::noinline]] void blocks(const span& a, std::ptrdiff_t first, std::ptrdiff_t last,
                              const void* rule, const loops<T>& of, const stages<T>& around,
                              const way<T>& by_kinds, squares_of_block<T>* squares, lanes* sums,
                              std::ptrdiff_t valid) {
  const int states = of.states;
  alignas(64) T x_buffer[block], g_buffer[block], buffers[most_states][block];
  const auto& [kind_of_g, how, finishes, opens_x, opens_g, opens, is_direct, whole, taken] =
      by_kinds;
  const stream& x_of = is(a.master) ? a.master : a.x;

  // The last ones go through all of this in copies, which have room for whole packs, or blocks.
  const std::ptrdiff_t left = (last - first) % whole;
  if (left != 0) {
    if (first < last - left)
      blocks<T>(a, first, last - left, rule, of, around, by_kinds, squares, sums,
                last - left - first);
    const rest copies(a, last - left, left, whole);
    blocks<T>(copies.copy, 0, whole, rule, of, around, {copies.copy, of, around}, squares, sums,
              left);
    return copies.put_back(a, around.c.zero_grad != 0);
  }
  const bool at_once = !opens && !around.prepares && !finishes;
  const std::ptrdiff_t size = at_once ? last - first : block;
  factors<T> by = around.by;
  if (around.prepares) by.scale = T(1);
  by.squares = squares;
  by.sums = sums;

  const auto there = [](const stream& s, std::ptrdiff_t i) {
    return static_cast<void*>(at<char>(s, i * s.width));
  };
  for (std::ptrdiff_t i = first; i < last; i += size) {
    const std::ptrdiff_t n = last - i < size ? last - i : size;
    void* const x = opens_x ? open(x_of, i, n, x_buffer) : there(x_of, i);
    void* g = opens_g || around.prepares ? g_buffer : there(a.g, i);
    void* state[most_states];
    for (int s = 0; s < states; ++s)
      state[s] = a.state[s].kind != taken->state ? open(a.state[s], i, n, buffers[s])
                                                 : there(a.state[s], i);
    if (around.fades) around.fade(n, static_cast<T*>(x), state, states);
    if (around.prepares)
      around.prepare(n, a.g, i, static_cast<const T*>(x), g_buffer);
    else if (opens_g)
      open(a.g, i, n, g_buffer);
    by.valid = valid - (i - first);
    taken->run(rule, by, n, x, g, state, around.chance_at(a, i));
    for (int s = 0; s < states; ++s)
      if (a.state[s].kind != taken->state)
        close(a.state[s], i, n, buffers[s], of.traits[s], around.chance_at(a, 0), s, a.size);
    if (finishes)
      around.finish(a, i, n, static_cast<T*>(x));
    else if (opens_x)
      close(a.x, i, n, x_buffer);
  }
}

// A step of elements of one row, or of an array, with the sums of its chunks where they are asked
// for.
template <class T> SCHUSS_INLINE void step(const span& a, std::ptrdiff_t first, std::ptrdiff_t last,
                                           const void* rule, const loops<T>& of,
                                           const stages<T>& around, const way<T>& by_kinds,
                                           double*& sums) {
  if (by_kinds.is_direct)
    return direct(a, first, last, rule, of.states, by_kinds.taken->run, around);
  if (sums == nullptr)
    return blocks<T>(a, first, last, rule, of, around, by_kinds, nullptr, nullptr, 0);
  for (std::ptrdiff_t from = first, to; from < last; from = to) {
    lanes all[most_reports];
    to = end_of_chunk(a, from, last);
    squares_of_block<T> squares;
    blocks<T>(a, from, to, rule, of, around, by_kinds, &squares, all, to - from);
    squares.to(all);
    for (const lanes& each : all) *sums++ = each.fold();
  }
}

}  // namespace
}  // namespace schuss
