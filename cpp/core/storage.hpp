// float16 and bfloat16 to float and back, a block at a time. Narrowing rounds to nearest even and
// keeps a NaN a NaN. bfloat16 is plain integer arithmetic, which vectorises everywhere; float16 has
// instructions of its own, two to five times faster than the integers that stand in for them. One
// copy of each block function serves all rules: a call is nothing beside a block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif
#if defined(__AVX512DQ__)
#include <cpuid.h>
#endif

namespace schuss {
namespace {

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

#if defined(__AVX512DQ__)
// Whether the processor has an instruction that rounds to bfloat16, as some with AVX-512 do. Asked
// once: to ask takes microseconds under a hypervisor.
inline bool rounds_to_bfloat16() {
  static int known = 0;
  enum { unknown, no, yes };
  int answer = __atomic_load_n(&known, __ATOMIC_RELAXED);
  if (answer == unknown) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    answer = __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 5 & 1) != 0 ? yes : no;
    __atomic_store_n(&known, answer, __ATOMIC_RELAXED);
  }
  return answer == yes;
}

// Narrows as many as come in whole vectors, and returns how many. The instruction takes subnormal
// numbers for zero, so that vectors with one go the other way; all else it rounds as we do.
[[gnu::target("avx512bf16"), gnu::noinline]] std::ptrdiff_t narrow_by_instruction(
    const float* in, std::ptrdiff_t n, std::uint16_t* h) {
  constexpr int at_once = 32, subnormal = 0x20;
  std::ptrdiff_t i = 0;
  for (; n - i >= at_once; i += at_once) {
    const __m512 low = _mm512_loadu_ps(in + i), high = _mm512_loadu_ps(in + i + at_once / 2);
    const __mmask16 some = static_cast<__mmask16>(_mm512_fpclass_ps_mask(low, subnormal) |
                                                  _mm512_fpclass_ps_mask(high, subnormal));
    if (some == 0)
      _mm512_storeu_si512(h + i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    else
      for (int j = 0; j < at_once; ++j) h[i + j] = narrow_bfloat16(in[i + j]);
  }
  return i;
}
#endif

[[gnu::noinline]] void widen_block(kind from, const void* data, std::ptrdiff_t n,
                                   float* __restrict out) {
  const auto* h = static_cast<const std::uint16_t*>(data);
  std::ptrdiff_t i = 0;
  if (from == kind::bfloat16) {
    for (; i < n; ++i) out[i] = widen_bfloat16(h[i]);
    return;
  }
#if defined(__F16C__)
  for (; i + at_once <= n; i += at_once) widen_some(h + i, out + i);
#endif
  for (; i < n; ++i) out[i] = widen_float16(h[i]);
}

[[gnu::noinline]] void narrow_block(kind to, const float* __restrict in, std::ptrdiff_t n,
                                    void* data) {
  auto* h = static_cast<std::uint16_t*>(data);
  std::ptrdiff_t i = 0;
  if (to == kind::bfloat16) {
#if defined(__AVX512DQ__)
    if (rounds_to_bfloat16()) i = narrow_by_instruction(in, n, h);
#endif
    for (; i < n; ++i) h[i] = narrow_bfloat16(in[i]);
    return;
  }
#if defined(__F16C__)
  for (; i + at_once <= n; i += at_once) narrow_some(in + i, h + i);
#endif
  for (; i < n; ++i) h[i] = narrow_float16(in[i]);
}

}  // namespace
}  // namespace schuss
