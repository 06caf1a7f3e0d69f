// What rules and stages do to one element. A NaN comes through every one of them. One select a
// statement: a nested ?: stays scalar on SSE2.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace schuss {
namespace {

// The larger one; a NaN on either side comes through, as std::max and maxps do not promise.
template <class T> T maximum(T a, T b) {
  const T larger = a > b ? a : b;
  return a != a ? a : larger;
}

// 1, -1, or the number itself where it is 0 or NaN.
template <class T> T sign(T a) {
  const T below = a < 0 ? T(-1) : a;
  return a > 0 ? T(1) : below;
}

// The number, or the bound that it is beyond.
template <class T> T clamp(T a, T low, T high) {
  const T above = a < low ? low : a;
  return above > high ? high : above;
}

// Closer to 0 by the threshold, and 0 where it is closer already.
template <class T> T shrink(T a, T threshold) { return a - clamp(a, -threshold, threshold); }

// 0 in place of what is smaller than `tiny`.
template <class T> T flush(T a, T tiny) { return std::fabs(a) < tiny ? T(0) : a; }

template <class T> double square(T a) { return static_cast<double>(a) * static_cast<double>(a); }

inline std::uint32_t bits_of(float f) {
  std::uint32_t u;
  __builtin_memcpy(&u, &f, sizeof u);
  return u;
}

inline float float_of(std::uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, sizeof f);
  return f;
}

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

}  // namespace
}  // namespace schuss
