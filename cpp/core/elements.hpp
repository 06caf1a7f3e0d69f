// What rules and stages do to one element, or to a pack of them. A NaN comes through every one of
// them.
#pragma once

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

// 32 random bits of a position and a step's key: two rounds of a mixer whose every output bit
// depends on every input bit ("lowbias32", Wellons 2018).
SCHUSS_INLINE words mix(words h) {
  h = (h ^ (h >> 16)) * 0x7feb352d;
  h = (h ^ (h >> 15)) * 0x846ca68b;
  return h ^ (h >> 16);
}

// x rounded to what 16 bits can hold: up with the probability of its distance from below, so that
// what they hold already stays. Where the spacing is that of float16's subnormal numbers, 2^-24,
// the sum with 1/2 finds the nearest; all that follows is exact.
SCHUSS_INLINE pack<float> dither(pack<float> x, words random, bool half) {
  using T = pack<float>;
  const words dropped = words() + (half ? 0x1fffu : 0xffffu), u = (words)x.v;
  T rounded = (vector<float>)((u + (random & dropped)) & ~dropped);
  const T size = fabs(x);
  if (half) {
    const T nearest = (size + 0.5f) - 0.5f, beyond = size - nearest;
    using whole = vector<std::int32_t>;
    const T least = T(__builtin_convertvector((whole)(random >> 8), vector<float>)) * 0x1p-48f;
    const T up = select(beyond > least, T(0x1p-24f), T(0));
    const T down = select(beyond <= least - 0x1p-24f, T(0x1p-24f), T(0));
    const T small = (vector<float>)((words)((nearest + up) - down).v | (u & 0x80000000));
    rounded = select(size < T(0x1p-14f), small, rounded);
  }
  return select(size <= T(std::numeric_limits<float>::max()), rounded, x);
}

}  // namespace
}  // namespace schuss
