// How what is stored in a kind narrower than the compute type is brought to it and back, a block at
// a time: an entry of a table for each kind. Closing rounds to nearest even and keeps a NaN a NaN.
//
// bfloat16 is plain integer arithmetic, which vectorises everywhere; float16 has instructions of
// its own, two to five times faster than the integers that stand in for them. One copy of each
// function serves all rules: a call is nothing beside a block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "elements.hpp"
#include "kernel.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace schuss {
namespace {

void* address(const stream& s, std::ptrdiff_t i) {
  return static_cast<char*>(s.data) + i * s.width;
}

inline float widen_bfloat16(std::uint16_t h) {
  return float_of(static_cast<std::uint32_t>(h) << 16);
}

inline std::uint16_t narrow_bfloat16(float f) {
  const std::uint32_t u = bits_of(f);
  const std::uint32_t rounded = u + 0x7fff + ((u >> 16) & 1);
  const std::uint32_t kept = f != f ? u | 0x400000 : rounded;
  return static_cast<std::uint16_t>(kept >> 16);
}

// The exponent's bias differs by 112; a product with 2^112 brings subnormal halves to their place.
inline float widen_float16(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16;
  const std::uint32_t rest = static_cast<std::uint32_t>(h & 0x7fff) << 13;
  const float scaled = float_of(rest) * 0x1p112f;
  const std::uint32_t special = rest | 0x7f800000;  // infinite or NaN
  return float_of(sign | (rest >= 0x0f800000 ? special : bits_of(scaled)));
}

inline std::uint16_t narrow_float16(float f) {
  const std::uint32_t u = bits_of(f);
  const std::uint32_t sign = (u >> 16) & 0x8000, rest = u & 0x7fffffff;
  const std::uint32_t normal = (rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13;
  // Below 2^-14 the sum with 1/2 rounds to a multiple of 2^-24, in the last bits of the sum.
  const std::uint32_t small = bits_of(float_of(rest) + 0.5f) - 0x3f000000;
  const std::uint32_t finite = rest < 0x38800000 ? small : normal;
  const std::uint32_t large = rest > 0x7f800000 ? 0x7e00u : 0x7c00u;
  return static_cast<std::uint16_t>(sign | (rest >= 0x477ff000 ? large : finite));
}

// As many float16 as there are instructions for.
#if defined(__AVX512F__) && defined(__F16C__)
constexpr std::ptrdiff_t at_once = 16;
constexpr __mmask16 all = 0xffff;  // gcc 12 warns of what stands behind those without a mask
inline void widen_some(const std::uint16_t* h, float* out) {
  _mm512_storeu_ps(
      out, _mm512_maskz_cvtph_ps(all, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(h))));
}
inline void narrow_some(const float* in, std::uint16_t* h) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(h),
                      _mm512_maskz_cvtps_ph(all, _mm512_loadu_ps(in), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
constexpr std::ptrdiff_t at_once = 8;
inline void widen_some(const std::uint16_t* h, float* out) {
  _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(h))));
}
inline void narrow_some(const float* in, std::uint16_t* h) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(h),
                   _mm256_cvtps_ph(_mm256_loadu_ps(in), _MM_FROUND_TO_NEAREST_INT));
}
#endif

#if defined(__AVX512BF16__)
// Narrows as many as come in whole vectors, and returns how many. The instruction takes subnormal
// numbers for zero, so that vectors with one go the other way; all else it rounds as we do.
inline std::ptrdiff_t narrow_by_instruction(const float* in, std::ptrdiff_t n, std::uint16_t* h) {
  constexpr int together = 32, subnormal = 0x20;
  std::ptrdiff_t i = 0;
  for (; n - i >= together; i += together) {
    const __m512 low = _mm512_loadu_ps(in + i), high = _mm512_loadu_ps(in + i + together / 2);
    const __mmask16 some = static_cast<__mmask16>(_mm512_fpclass_ps_mask(low, subnormal) |
                                                  _mm512_fpclass_ps_mask(high, subnormal));
    if (some == 0)
      _mm512_storeu_si512(h + i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    else
      for (int j = 0; j < together; ++j) h[i + j] = narrow_bfloat16(in[i + j]);
  }
  return i;
}
#endif

void open_float16(const stream& s, std::ptrdiff_t from, std::ptrdiff_t n, float* __restrict out) {
  const auto* h = static_cast<const std::uint16_t*>(address(s, from));
  std::ptrdiff_t i = 0;
#if defined(__F16C__)
  for (; i + at_once <= n; i += at_once) widen_some(h + i, out + i);
#endif
  for (; i < n; ++i) out[i] = widen_float16(h[i]);
}

void close_float16(const stream& s, std::ptrdiff_t from, std::ptrdiff_t n,
                   const float* __restrict in) {
  auto* h = static_cast<std::uint16_t*>(address(s, from));
  std::ptrdiff_t i = 0;
#if defined(__F16C__)
  for (; i + at_once <= n; i += at_once) narrow_some(in + i, h + i);
#endif
  for (; i < n; ++i) h[i] = narrow_float16(in[i]);
}

void open_bfloat16(const stream& s, std::ptrdiff_t from, std::ptrdiff_t n, float* __restrict out) {
  const auto* h = static_cast<const std::uint16_t*>(address(s, from));
  for (std::ptrdiff_t i = 0; i < n; ++i) out[i] = widen_bfloat16(h[i]);
}

void close_bfloat16(const stream& s, std::ptrdiff_t from, std::ptrdiff_t n,
                    const float* __restrict in) {
  auto* h = static_cast<std::uint16_t*>(address(s, from));
  std::ptrdiff_t i = 0;
#if defined(__AVX512BF16__)
  i = narrow_by_instruction(in, n, h);
#endif
  for (; i < n; ++i) h[i] = narrow_bfloat16(in[i]);
}

// x rounded stochastically, with the random numbers of its elements' positions.
template <bool half> void dither_block(const float* __restrict x, std::ptrdiff_t n,
                                       std::uint32_t position, std::uint32_t key,
                                       float* __restrict out) {
  for (std::ptrdiff_t i = 0; i < n; ++i)
    out[i] = dither<half>(x[i], mix(mix(position + static_cast<std::uint32_t>(i)) + key));
}

// By kind, in the order of `kind`.
constexpr storage storages[] = {
    {},  // none
    {},  // float32
    {},  // float64
    {open_float16, close_float16, dither_block<true>},
    {open_bfloat16, close_bfloat16, dither_block<false>},
};

const storage& storage_of(kind k) { return storages[static_cast<int>(k)]; }

// Whether a kind is narrower than the compute type, and so has to be opened and closed. To ask the
// table took 1.2 times the instructions of a step over many arrays of one element.
constexpr bool narrow(kind k) { return k >= kind::float16; }

// Elements of a stream from i on: where they lie, or brought to the compute type in the buffer.
template <class T> T* open(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n, T* buffer) {
  if constexpr (std::is_same_v<T, float>)
    if (narrow(s.kind)) {
      storage_of(s.kind).open(s, i, n, buffer);
      return buffer;
    }
  return static_cast<T*>(address(s, i));
}

// Puts them back where they were brought from.
template <class T> void close(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n, const T* from) {
  if constexpr (std::is_same_v<T, float>)
    if (narrow(s.kind)) storage_of(s.kind).close(s, i, n, from);
}

// The number above another one in a type with a sign bit, of which these are the bits.
template <class Bits> Bits next_above(Bits bits) {
  return static_cast<Bits>((bits >> (8 * sizeof bits - 1)) != 0 ? bits - 1 : bits + 1);
}

// The smallest number of a kind that is not below a bound.
template <class T> T least_from(double bound, kind k) {
  if constexpr (std::is_same_v<T, double>) return bound;
  const float nearest = static_cast<float>(bound);
  const float least = nearest < bound ? float_of(next_above(bits_of(nearest))) : nearest;
  if (!narrow(k)) return least;
  std::uint16_t bits = 0;
  const stream one{&bits, k, sizeof bits};
  float found;
  storage_of(k).close(one, 0, 1, &least);
  storage_of(k).open(one, 0, 1, &found);
  if (found < least) {
    bits = next_above(bits);
    storage_of(k).open(one, 0, 1, &found);
  }
  return found;
}

}  // namespace
}  // namespace schuss
