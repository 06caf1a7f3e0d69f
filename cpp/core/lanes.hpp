// Sums in a fixed tree: in double, of chunks from where a row begins, which for an array by itself
// is all of it. Element i of a chunk adds its value to lane i mod 16, in order; lanes fold 8-4-2-1.
// The driver folds the chunks.
#pragma once

#include <cstddef>
#include <utility>

#include "pack.hpp"

namespace schuss {
namespace {

// Elements of one turn of a loop: one for each lane.
constexpr std::ptrdiff_t sixteen = 16;

// The sum of a chunk: in registers, where it is a loop's own.
class lanes {
 public:
  // Adds a pack of values, of which the first one is element i of sixteen.
  template <class P> SCHUSS_INLINE void add(std::ptrdiff_t i, const doubles<P>& values) {
    number* const at = all_ + i / number::size;
    at[0] = at[0] + values.part[0];
    if constexpr (doubles<P>::parts == 2) at[1] = at[1] + values.part[1];
  }

  // Adds sixteen numbers.
  template <class T> void add(const pack<T> (&packs)[sixteen / pack<T>::size]) {
    for (std::ptrdiff_t p = 0; p < sixteen / pack<T>::size; ++p)
      add(p * pack<T>::size, doubles<pack<T>>(packs[p]));
  }

  // Takes the first n lanes of another sum.
  void take(std::ptrdiff_t n, const lanes& other) {
    __builtin_memcpy(all_, other.all_, static_cast<std::size_t>(n) * sizeof(double));
  }

  // Their sum, as a tree.
  [[gnu::noinline]] double fold() const {
    number packs[sixteen / number::size];
    for (std::ptrdiff_t p = 0; p < sixteen / number::size; ++p) packs[p] = all_[p];
    for (std::ptrdiff_t half = sixteen / number::size / 2; half > 0; half /= 2)
      for (std::ptrdiff_t p = 0; p < half; ++p) packs[p] = packs[p] + packs[p + half];
    double all[number::size];
    packs[0].to(all);
    for (std::ptrdiff_t half = number::size / 2; half > 0; half /= 2)
      for (std::ptrdiff_t l = 0; l < half; ++l) all[l] = all[l] + all[l + half];
    return all[0];
  }

 private:
  using number = pack<double>;
  number all_[sixteen / number::size] = {};
};

// Calls work(i, lane) for the packs of n elements, whole sixteens, from `first` on. Which lane a
// pack begins with is a constant once this is inlined, so that lanes can be in registers.
template <class T, class Work, std::ptrdiff_t... lane>
SCHUSS_INLINE void each_pack(std::ptrdiff_t first, std::ptrdiff_t n, const Work& work,
                             std::integer_sequence<std::ptrdiff_t, lane...>) {
  constexpr std::ptrdiff_t size = pack<T>::size;
  for (std::ptrdiff_t i = first; i < first + n; i += sixteen)
    (work(i + lane * size, lane * size), ...);
}
template <class T, class Work>
SCHUSS_INLINE void each_pack(std::ptrdiff_t first, std::ptrdiff_t n, const Work& work) {
  constexpr std::ptrdiff_t packs = sixteen / pack<T>::size;
  each_pack<T>(first, n, work, std::make_integer_sequence<std::ptrdiff_t, packs>());
}

}  // namespace
}  // namespace schuss
