// The table of rules of one instruction set.
//
// Compiled once for each instruction set, with that set's flags and SCHUSS_ISA as its name
// (CMakeLists.txt). Everything but the table has internal linkage and no function of the standard
// library is left standing: an object's code, picked by the linker for another one's, would be an
// illegal instruction on an older processor.
#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "factored.hpp"
#include "kernel.hpp"
#include "layout.hpp"
#include "rules.hpp"
#include "stages.hpp"
#include "storage.hpp"
#include "sums.hpp"

namespace schuss {
namespace {

// How many state arrays a rule has, from its call operator T(T x, T g, T& state...).
template <class> struct states_of;
template <class T, class Rule, class... State>
struct states_of<T (Rule::*)(T, T, State&...) const> {
  using type = std::make_index_sequence<sizeof...(State)>;
};

// What a rule says of them, if it has any.
template <class Rule> constexpr auto traits_of(int) -> decltype(&*Rule::states) {
  return Rule::states;
}
template <class Rule> constexpr const trait* traits_of(long) { return nullptr; }

template <template <class> class Rule> struct kernels_of {
  static constexpr const trait* traits = traits_of<Rule<float>>(0);
  static constexpr std::size_t scalar_count = sizeof(Rule<float>) / sizeof(float);
  using states = typename states_of<decltype(&Rule<float>::operator())>::type;
  static_assert(scalar_count <= most_scalars && states::size() <= most_states);

  template <class T, std::size_t... C>
  static Rule<pack<T>> with(const scalars& c, std::index_sequence<C...>) {
    return {pack<T>(static_cast<T>(c.rule_scalars[C]))...};
  }
  using indices = std::make_index_sequence<scalar_count>;

  template <class T, form how, kind X, kind G, kind S>
  [[gnu::flatten]] static void taken(const void* rule, const factors<T>& by, std::ptrdiff_t n,
                                     void* x, void* g, void* const* state, const chance& from) {
    apply<T, how, X, G, S>(*static_cast<const Rule<pack<T>>*>(rule), by, n, x, g, state, from,
                           states());
  }
  template <class T, form how, kind X, kind G, kind S> static constexpr loop<T> loop_of() {
    return {X, G, S, taken<T, how, X, G, S>};
  }

  template <class T, kind f> static constexpr loop<T> wide[] = {
      loop_of<T, plain, f, f, f>(),    loop_of<T, coupled, f, f, f>(),
      loop_of<T, masked, f, f, f>(),   loop_of<T, judged, f, f, f>(),
      loop_of<T, bounded, f, f, f>(),  loop_of<T, cleared, f, f, f>(),
      loop_of<T, reported, f, f, f>(), loop_of<T, judged_and_reported, f, f, f>()};
  template <kind f, kind h> static constexpr loop<float> of_16_bits[] = {
      loop_of<float, plain, h, h, h>(), loop_of<float, plain, f, h, h>(),
      loop_of<float, plain, f, f, h>(), loop_of<float, plain, f, h, f>()};

  template <class T> static loops<T> all_loops() {
    constexpr int count = static_cast<int>(states::size());
    if constexpr (std::is_same_v<T, double>)
      return {count, traits, wide<double, kind::float64>, nullptr, nullptr};
    else
      return {count, traits, wide<float, kind::float32>, of_16_bits<kind::float32, kind::bfloat16>,
              of_16_bits<kind::float32, kind::float16>};
  }

  template <class T> static void run(const span* a, const span* end, std::ptrdiff_t first,
                                     std::ptrdiff_t last, const scalars& c) {
    const auto rule = with<T>(c, indices());
    const stages<T> around(c, a->report != nullptr);
    const loops<T> of = all_loops<T>();
    for (; a != end; ++a, first = 0) {
      const std::ptrdiff_t until = a + 1 == end ? last : a->size;
      if (first == until) continue;
      double* sums = a->report;
      if (sums != nullptr) sums += most_reports * chunks_before(*a, first);
      way<T> by_kinds(*a, of, around);
      each_row(*a, first, until,
               [&](const span& row, std::ptrdiff_t from, std::ptrdiff_t to)
                   __attribute__((always_inline)) {
                     if (row.g.kind != by_kinds.g) by_kinds = way<T>(row, of, around);
                     step<T>(row, from, to, &rule, of, around, by_kinds, sums);
                   });
    }
  }
  template <class T> static void measure(const span& a, std::ptrdiff_t first, std::ptrdiff_t last,
                                         const scalars& c, unsigned wanted, double* sums) {
    schuss::measure<T>(a, first, last, with<T>(c, indices()), stages<T>(c), wanted, sums, states());
  }
};

constexpr rule rules[] = {
#define SCHUSS_ENTRY(name)                             \
  {#name,                                              \
   static_cast<int>(kernels_of<name>::states::size()), \
   static_cast<int>(kernels_of<name>::scalar_count),   \
   kernels_of<name>::traits,                           \
   measures<name<pack<float>>>(0),                     \
   kernels_of<name>::run<float>,                       \
   kernels_of<name>::run<double>,                      \
   kernels_of<name>::measure<float>,                   \
   kernels_of<name>::measure<double>},
    SCHUSS_RULES(SCHUSS_ENTRY)
#undef SCHUSS_ENTRY
};

// A sum alone, from its stream to x.
template <class T> void add_to(const span& of, std::ptrdiff_t first, std::ptrdiff_t last) {
  alignas(64) T room[block];
  span to{};
  to.x = of.x;
  for (std::ptrdiff_t i = first; i < last; i += block) {
    const std::ptrdiff_t n = std::min(block, last - i), left = n % pack<T>::size;
    add_up(of.g, i, n, room);
    close(to.x, i, n - left, room);
    if (left == 0) continue;
    const rest copies(to, i + n - left, left);
    close(copies.copy.x, 0, pack<T>::size, room + n - left);
    copies.put_back(to, false);
  }
}
void add(const span& of, std::ptrdiff_t first, std::ptrdiff_t last) {
  of.x.kind == kind::float64 ? add_to<double>(of, first, last) : add_to<float>(of, first, last);
}

// The quotient as the rules take it, for the proof that it is rounded right.
void divide(const float* a, const float* b, std::ptrdiff_t n, float* quotients) {
  span pairs{};
  pairs.x = {quotients, kind::float32, sizeof(float)};
  pairs.g = {const_cast<float*>(a), kind::float32, sizeof(float)};
  pairs.low = {const_cast<float*>(b), kind::float32, sizeof(float)};
  const auto take = [](const span& s, std::ptrdiff_t first, std::ptrdiff_t last) {
    for (std::ptrdiff_t i = first; i < last; i += pack<float>::size)
      store<float>(s.x, i, load<float>(s.g, i) / load<float>(s.low, i));
  };
  const std::ptrdiff_t left = n % pack<float>::size;
  take(pairs, 0, n - left);
  const rest last(pairs, n - left, left);
  if (left > 0) take(last.copy, 0, pack<float>::size), last.put_back(pairs, false);
}

}  // namespace

// The one exported symbol, named after the instruction set: schuss_kernels_avx2.
#define SCHUSS_EXPORT(isa) SCHUSS_TABLE(isa)
#define SCHUSS_TABLE(isa)                                                                       \
  extern const table schuss_kernels_##isa;                                                      \
  const table schuss_kernels_##isa = {#isa,        rules,         sizeof(rules) / sizeof(rule), \
                                      add_squares, scales_finite, add_lines,                    \
                                      convert,     add,           divide};
SCHUSS_EXPORT(SCHUSS_ISA)

}  // namespace schuss
