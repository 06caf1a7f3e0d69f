// The block loop and the table of rules of one instruction set.
//
// Compiled once for each instruction set, with that set's flags and SCHUSS_ISA as its name
// (CMakeLists.txt). Everything but the table has internal linkage and no function of the standard
// library is left standing: an object's code, picked by the linker for another one's, would be an
// illegal instruction on an older processor.
#include "kernel.hpp"
#include "rules.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

namespace schuss {
namespace {

// How many state arrays a rule has, from its call operator T(T x, T g, T& state...).
template <class> struct states_of;
template <class T, class Rule, class... State>
struct states_of<T (Rule::*)(T, T, State&...) const> {
  using type = std::make_index_sequence<sizeof...(State)>;
};

template <class T> T* at(const stream& s, std::ptrdiff_t i) { return static_cast<T*>(s.data) + i; }

// The one loop over elements: the rule, with the stages that cost nothing around it. Scaling by 1
// and keeping 1 change no bit.
template <class T, class Rule, class... State>
[[gnu::always_inline]] inline void apply(const Rule& rule, T scale, T keep, [[maybe_unused]] T tiny,
                                         std::ptrdiff_t n, T* __restrict x, const T* __restrict g,
                                         State* __restrict... state) {
  // gcc 12 doesn't heed __restrict on a parameter pack: without this each loop has a checked twin.
#pragma GCC ivdep
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const T u = rule(x[i], scale * g[i], state[i]...);
    ((state[i] = std::fabs(state[i]) < tiny ? T(0) : state[i]), ...);
    x[i] = keep * x[i] - u;
  }
}

// The block loop: brings each block of each stream to the compute type, prepares the gradient,
// applies the rule, finishes the parameter and puts it back. What is not asked for costs one
// predictable branch a block.
template <class T, class Rule, std::size_t... S, std::size_t... C>
[[gnu::always_inline]] inline void blocks(const span& a, std::ptrdiff_t first, std::ptrdiff_t last,
                                          const scalars& c, std::index_sequence<S...>,
                                          std::index_sequence<C...>) {
  const Rule rule{static_cast<T>(c.rule_scalars[C])...};
  const T l2 = static_cast<T>(c.l2), keep = static_cast<T>(c.keep);
  const T tiny = c.flush != 0 ? std::numeric_limits<T>::min() : T(0);
  T prepared[block];

  for (std::ptrdiff_t i = first; i < last; i += block) {
    const std::ptrdiff_t n = last - i < block ? last - i : block;
    T* const x = at<T>(a.x, i);
    const T* g = at<T>(a.g, i);
    T scale = static_cast<T>(c.scale);
    if (c.l2 != 0) {
      for (std::ptrdiff_t j = 0; j < n; ++j) prepared[j] = scale * g[j] + l2 * x[j];
      g = prepared;
      scale = 1;
    }
    apply(rule, scale, keep, tiny, n, x, g, at<T>(a.state[S], i)...);
  }
}

template <template <class> class Rule> struct kernels_of {
  static constexpr std::size_t scalar_count = sizeof(Rule<float>) / sizeof(float);
  using states = typename states_of<decltype(&Rule<float>::operator())>::type;
  static_assert(scalar_count <= most_scalars && states::size() <= most_states);

  template <class T>
  static void run(const span& a, std::ptrdiff_t first, std::ptrdiff_t last, const scalars& c) {
    blocks<T, Rule<T>>(a, first, last, c, states(), std::make_index_sequence<scalar_count>());
  }
};

constexpr rule rules[] = {
#define SCHUSS_ENTRY(name)                                                         \
  {#name, static_cast<int>(kernels_of<name>::states::size()),                      \
   static_cast<int>(kernels_of<name>::scalar_count), kernels_of<name>::run<float>, \
   kernels_of<name>::run<double>},
    SCHUSS_RULES(SCHUSS_ENTRY)
#undef SCHUSS_ENTRY
};

}  // namespace

// The one exported symbol, named after the instruction set: schuss_kernels_avx2.
#define SCHUSS_EXPORT(isa) SCHUSS_TABLE(isa)
#define SCHUSS_TABLE(isa)                  \
  extern const table schuss_kernels_##isa; \
  const table schuss_kernels_##isa = {#isa, rules, sizeof(rules) / sizeof(rule)};
SCHUSS_EXPORT(SCHUSS_ISA)

}  // namespace schuss
