// What rules and stages do to one element, or to a pack of them. A NaN comes through every one of
// them.
#pragma once

#include <cstdint>

#include "pack.hpp"

namespace schuss {
namespace {

// The larger one; a NaN on either side comes through, as std::max and maxps do not promise.
template <class T> SCHUSS_INLINE T maximum(T a, T b) {
  return select(a != a, a, select(a > b, a, b));
}

// 1, -1, or the number itself where it is 0 or NaN.
template <class T> SCHUSS_INLINE T sign(T a) {
  return select(a > T(0), T(1), select(a < T(0), T(-1), a));
}

// The number, or the bound that it is beyond.
template <class T> SCHUSS_INLINE T clamp(T a, T low, T high) {
  const T above = select(low > a, low, a);
  return select(high < above, high, above);
}

// Closer to 0 by the threshold, and 0 where it is closer already.
template <class T> SCHUSS_INLINE T shrink(T a, T threshold) {
  return a - clamp(a, -threshold, threshold);
}

// 0 in place of what is smaller than `tiny`.
template <class T> SCHUSS_INLINE T flush(T a, T tiny) { return select(fabs(a) < tiny, T(0), a); }

// The dither of the element at a place, in a step with this key: 32 bits, which are as a turned
// lattice from element to element, and from step to step, whose keys differ by the golden angle, so
// that what is rounded up and down balances within few steps. Independent random numbers take
// twelve operations, and leave a second moment in 8 bits with 1.3 times the error.
constexpr std::uint32_t between_places = 0x85ebca6b, between_arrays = 0x6a09e667;

// Of the elements of a pack that begins at a place; and what it grows by from pack to pack.
SCHUSS_INLINE words lattice(std::uint32_t place, std::uint32_t key) {
  return (place + counted()) * between_places + key;
}
constexpr std::uint32_t between_packs =
    static_cast<std::uint32_t>(pack<float>::size) * between_places;

}  // namespace
}  // namespace schuss
