// The table of rules of one instruction set.
//
// Compiled once for each instruction set, with that set's flags and SCHUSS_ISA as its name
// (CMakeLists.txt). Everything but the table has internal linkage and no function of the standard
// library is left standing: an object's code, picked by the linker for another one's, would be an
// illegal instruction on an older processor.
#include <cstddef>
#include <utility>

#include "kernel.hpp"
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
  template <class T> static void measure(const span& a, std::ptrdiff_t first, std::ptrdiff_t last,
                                         const scalars& c, unsigned wanted, double* sums) {
    schuss::measure<T>(a, first, last, with<T>(c, indices()), c, wanted, sums, states());
  }
};

constexpr rule rules[] = {
#define SCHUSS_ENTRY(name)                             \
  {#name,                                              \
   static_cast<int>(kernels_of<name>::states::size()), \
   static_cast<int>(kernels_of<name>::scalar_count),   \
   measures<name<float>>(0),                           \
   kernels_of<name>::run<float>,                       \
   kernels_of<name>::run<double>,                      \
   kernels_of<name>::measure<float>,                   \
   kernels_of<name>::measure<double>},
    SCHUSS_RULES(SCHUSS_ENTRY)
#undef SCHUSS_ENTRY
};

}  // namespace

// The one exported symbol, named after the instruction set: schuss_kernels_avx2.
#define SCHUSS_EXPORT(isa) SCHUSS_TABLE(isa)
#define SCHUSS_TABLE(isa)                                                                       \
  extern const table schuss_kernels_##isa;                                                      \
  const table schuss_kernels_##isa = {#isa,        rules,         sizeof(rules) / sizeof(rule), \
                                      add_squares, scales_finite, storages};
SCHUSS_EXPORT(SCHUSS_ISA)

}  // namespace schuss
