// One register of elements, with the operators of a number: what a rule's T is in the kernels.
//
// GNU vectors (gcc and clang), so that no compiler has to find out by itself that a loop can be
// vectorised: which one compiles a build, and with which flags, decides nothing. All intrinsics are
// here; what a set of instructions lacks follows from integers, equal in every bit.
//
// MSVC has no such vectors: a pack there is an array with a loop in each operator, to be written
// when somebody can run it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernel.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define SCHUSS_INLINE [[gnu::always_inline]] inline

namespace schuss {
namespace {

#if defined(__AVX512F__)
constexpr std::size_t register_bytes = 64;
#elif defined(__AVX2__)
constexpr std::size_t register_bytes = 32;
#else
constexpr std::size_t register_bytes = 16;
#endif

template <class T, std::size_t bytes> struct vector_of {
  typedef T type __attribute__((vector_size(bytes)));
};
template <class T, std::size_t bytes = register_bytes> using vector =
    typename vector_of<T, bytes>::type;

// ---- What has an instruction of its own in each set

#if defined(__AVX512F__)
SCHUSS_INLINE vector<float> root(vector<float> a) { return _mm512_maskz_sqrt_ps(0xffff, a); }
SCHUSS_INLINE vector<double> root(vector<double> a) { return _mm512_maskz_sqrt_pd(0xff, a); }
SCHUSS_INLINE vector<double> lower(vector<float> a) {
  return _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, a, 0));
}
SCHUSS_INLINE vector<double> upper(vector<float> a) {
  return _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, a, 1));
}
#elif defined(__AVX2__)
SCHUSS_INLINE vector<float> root(vector<float> a) { return _mm256_sqrt_ps(a); }
SCHUSS_INLINE vector<double> root(vector<double> a) { return _mm256_sqrt_pd(a); }
SCHUSS_INLINE vector<double> lower(vector<float> a) {
  return _mm256_cvtps_pd(_mm256_castps256_ps128(a));
}
SCHUSS_INLINE vector<double> upper(vector<float> a) {
  return _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
}
#elif defined(__SSE2__)
SCHUSS_INLINE vector<float> root(vector<float> a) { return _mm_sqrt_ps(a); }
SCHUSS_INLINE vector<double> root(vector<double> a) { return _mm_sqrt_pd(a); }
SCHUSS_INLINE vector<double> lower(vector<float> a) { return _mm_cvtps_pd(a); }
SCHUSS_INLINE vector<double> upper(vector<float> a) { return _mm_cvtps_pd(_mm_movehl_ps(a, a)); }
#elif defined(__aarch64__)
SCHUSS_INLINE vector<float> root(vector<float> a) { return vsqrtq_f32(a); }
SCHUSS_INLINE vector<double> root(vector<double> a) { return vsqrtq_f64(a); }
SCHUSS_INLINE vector<double> lower(vector<float> a) { return vcvt_f64_f32(vget_low_f32(a)); }
SCHUSS_INLINE vector<double> upper(vector<float> a) { return vcvt_high_f64_f32(a); }
#else
SCHUSS_INLINE vector<float> root(vector<float> a) {
  for (int i = 0; i < 4; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
SCHUSS_INLINE vector<double> root(vector<double> a) {
  for (int i = 0; i < 2; ++i) a[i] = __builtin_sqrt(a[i]);
  return a;
}
SCHUSS_INLINE vector<double> lower(vector<float> a) { return vector<double>{a[0], a[1]}; }
SCHUSS_INLINE vector<double> upper(vector<float> a) { return vector<double>{a[2], a[3]}; }
#endif

// ---- The quotient

template <class V> SCHUSS_INLINE V quotient(V a, V b) { return a / b; }

#if defined(SCHUSS_DIVIDES_BY_PRODUCTS)
// Rounded right, as the divider's, in products: an estimate of 1/b and a cubic step lead to the
// inverse, and the residual of a quotient by it, which is exact, rounds that one (Markstein,
// "Computation of elementary functions on the IBM RISC System/6000 processor", 1990). So the
// divider has the roots alone to do.
//
// Estimates have bits of their own on each processor, and all are within 2^-14. That is all that is
// asked of them: whatever the estimate, the inverse is within 2^-37 of 1/b before it is rounded. So
// it is one float for all estimates, or, for 1461 significands of b, one of two, and all quotients
// by either are rounded right; except where b is that close below a power of two that it goes to
// the divider. So do numbers for which a step could leave the normal ones. A 0 keeps its sign,
// since its residual, +0, is subtracted. tests/exact/test_quotient.py proves it.
SCHUSS_INLINE vector<float> quotient(vector<float> a, vector<float> b) {
  constexpr int bias = 127, least_b = -60, above_b = 24, least_a = -100, above_a = 60;
  const auto bits_at = [](int exponent) { return (bias + exponent) << 23; };
  // Bits behind those of the least number, unsigned: all that is beyond the others is larger. Those
  // of b are some more, so that of the last significands below a power of two all but these lowest
  // bits are 0. Rounding needs the divider for the odd ones from the 45th last on.
  constexpr int last = 64;
  const __m512i of_b =
      _mm512_sub_epi32(_mm512_castps_si512(b), _mm512_set1_epi32(bits_at(least_b) - last));
  const __m512i size = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff));
  const __m512i of_a = _mm512_sub_epi32(size, _mm512_set1_epi32(bits_at(least_a)));
  const __mmask16 special_b = static_cast<__mmask16>(
      _mm512_testn_epi32_mask(of_b, _mm512_set1_epi32(0x800000 - last)) |
      _mm512_cmpge_epu32_mask(of_b, _mm512_set1_epi32(bits_at(above_b) - bits_at(least_b))));
  const __mmask16 special_a =
      _mm512_mask_cmpge_epu32_mask(_mm512_test_epi32_mask(size, size), of_a,
                                   _mm512_set1_epi32(bits_at(above_a) - bits_at(least_a)));
  if (__builtin_expect(_mm512_kortestz(special_a, special_b) == 0, 0)) return a / b;
  const __m512 one = _mm512_set1_ps(1), estimate = _mm512_maskz_rcp14_ps(0xffff, b);
  const __m512 error = _mm512_fnmadd_ps(b, estimate, one);
  const __m512 inverse = _mm512_fmadd_ps(estimate, _mm512_fmadd_ps(error, error, error), estimate);
  const __m512 near = a * inverse;
  return _mm512_fnmadd_ps(_mm512_fmsub_ps(b, near, a), inverse, near);
}
#endif

// ---- The register

template <class T> struct pack {
  using vec = vector<T>;
  using bits = vector<std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>>;
  static constexpr std::ptrdiff_t size{register_bytes / sizeof(T)};

  struct mask {
    decltype(vec() < vec()) v;
  };

  vec v;

  pack() = default;
  SCHUSS_INLINE pack(vec from) : v(from) {}
  SCHUSS_INLINE pack(T all) : v(all - vec()) {}  // -0 - 0 is -0
  SCHUSS_INLINE static pack from(const void* at) {
    vec found;
    __builtin_memcpy(&found, at, sizeof found);
    return found;
  }
  SCHUSS_INLINE void to(void* at) const { __builtin_memcpy(at, &v, sizeof v); }

  SCHUSS_INLINE friend pack operator+(pack a, pack b) { return a.v + b.v; }
  SCHUSS_INLINE friend pack operator-(pack a, pack b) { return a.v - b.v; }
  SCHUSS_INLINE friend pack operator*(pack a, pack b) { return a.v * b.v; }
  SCHUSS_INLINE friend pack operator/(pack a, pack b) { return quotient(a.v, b.v); }
  SCHUSS_INLINE friend pack operator-(pack a) { return -a.v; }
  SCHUSS_INLINE friend mask operator<(pack a, pack b) { return {a.v < b.v}; }
  SCHUSS_INLINE friend mask operator>(pack a, pack b) { return {a.v > b.v}; }
  SCHUSS_INLINE friend mask operator<=(pack a, pack b) { return {a.v <= b.v}; }
  SCHUSS_INLINE friend mask operator!=(pack a, pack b) { return {a.v != b.v}; }
  // For each element that of a where the mask holds, else that of b.
  SCHUSS_INLINE friend pack select(mask m, pack a, pack b) { return m.v ? a.v : b.v; }
  SCHUSS_INLINE friend pack sqrt(pack a) { return root(a.v); }
  SCHUSS_INLINE friend pack fabs(pack a) {
    constexpr int sign = 8 * sizeof(T) - 1;
    return (vec)((bits)a.v & ~((bits() + 1) << sign));
  }
};

// The numbers of a pack as doubles.
template <class P> struct doubles {
  static constexpr std::size_t parts = P::size / pack<double>::size;
  pack<double> part[parts];

  SCHUSS_INLINE doubles(P a) {
    if constexpr (parts == 1) {
      part[0] = a;
    } else {
      part[0] = lower(a.v);
      part[1] = upper(a.v);
    }
  }
  SCHUSS_INLINE friend doubles operator*(doubles a, const doubles& b) {
    for (std::size_t p = 0; p < parts; ++p) a.part[p] = a.part[p] * b.part[p];
    return a;
  }
};

template <class P> SCHUSS_INLINE doubles<P> square(P a) {
  const doubles<P> wide = a;
  return wide * wide;
}

// Whether the mask holds anywhere.
template <class Mask> SCHUSS_INLINE bool any(Mask m) {
  std::uint64_t word[sizeof m / sizeof(std::uint64_t)], found = 0;
  __builtin_memcpy(word, &m, sizeof m);
  for (const std::uint64_t part : word) found |= part;
  return found != 0;
}

// ---- 16 bits: widened from memory, and narrowed to it, to nearest even; a NaN stays a NaN

using words = vector<std::uint32_t>;
using halves = vector<std::uint16_t, register_bytes / 2>;

// The numbers 0, 1, 2, ... of the elements.
SCHUSS_INLINE words counted() {
  words numbers{};
  for (unsigned i = 0; i < register_bytes / 4; ++i) numbers[i] = i;
  return numbers;
}

SCHUSS_INLINE words words_of(const void* h) {
  halves found;
  __builtin_memcpy(&found, h, sizeof found);
  return __builtin_convertvector(found, words);
}

SCHUSS_INLINE void put_words(words w, void* h) {
  const halves low = __builtin_convertvector(w, halves);
  __builtin_memcpy(h, &low, sizeof low);
}

SCHUSS_INLINE pack<float> widen_bfloat16(const void* h) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // One shuffle in place of a conversion and a shift: each half into the upper two bytes.
  const __m256i upper_bytes =
      _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7, -1, -1, 8, 9, -1, -1,
                       10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  const __m128i found = _mm_loadu_si128(static_cast<const __m128i*>(h));
  return (vector<float>)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(found), upper_bytes);
#else
  return (vector<float>)(words_of(h) << 16);
#endif
}

// The 32 bits whose upper half is the nearest bfloat16.
SCHUSS_INLINE words rounded_bfloat16(pack<float> f) {
  const words u = (words)f.v;
  // A NaN, whose mantissa the sum may carry away, becomes the NaN of all bits.
  return (u + 0x7fff + ((u >> 16) & 1)) | (words)(f.v != f.v);
}

// Stores the upper halves.
SCHUSS_INLINE void put_upper(words w, void* h) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i upper_bytes =
      _mm256_setr_epi8(2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1,  //
                       2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i low = _mm256_shuffle_epi8((__m256i)w, upper_bytes);
  _mm_storel_epi64(static_cast<__m128i*>(h), _mm256_castsi256_si128(low));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(static_cast<char*>(h) + 8),
                   _mm256_extracti128_si256(low, 1));
#else
  put_words(w >> 16, h);
#endif
}

SCHUSS_INLINE void narrow_bfloat16(pack<float> f, void* h) {
#if defined(__AVX512BF16__)
  // The instruction takes subnormal numbers for zero, so that registers with one go the other way;
  // all else it rounds as we do.
  constexpr int subnormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask(f.v, subnormal) == 0, 1)) {
    const __m256bh low = _mm512_cvtneps_pbh(f.v);
    __builtin_memcpy(h, &low, sizeof low);
    return;
  }
#endif
  put_upper(rounded_bfloat16(f), h);
}

// The exponent's bias differs by 112; a product with 2^112 brings subnormal halves to their place.
SCHUSS_INLINE pack<float> widen_float16(const void* h) {
#if defined(__F16C__)
#if defined(__AVX512F__)
  vector<float> wide =
      _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(h)));
#else
  vector<float> wide = _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(h)));
#endif
#if defined(__clang__)
  // It would compare the halves instead where wide is compared with itself, one by one.
  __asm__("" : "+v"(wide));
#endif
  return wide;
#else
  const words u = words_of(h), sign = (u & 0x8000) << 16, rest = (u & 0x7fff) << 13;
  const words scaled = (words)((vector<float>)rest * 0x1p112f);
  const words special = rest | 0x7f800000;  // infinite or NaN
  return (vector<float>)(sign | (rest >= 0x0f800000 ? special : scaled));
#endif
}

SCHUSS_INLINE void narrow_float16(pack<float> f, void* h) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(static_cast<__m256i*>(h),
                      _mm512_maskz_cvtps_ph(0xffff, f.v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(static_cast<__m128i*>(h), _mm256_cvtps_ph(f.v, _MM_FROUND_TO_NEAREST_INT));
#else
  const words u = (words)f.v, sign = (u >> 16) & 0x8000, rest = u & 0x7fffffff;
  const words normal = (rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13;
  // Below 2^-14 the sum with 1/2 rounds to a multiple of 2^-24, in the last bits of the sum.
  const words small = (words)((vector<float>)rest + 0.5f) - 0x3f000000;
  const words finite = rest < 0x38800000 ? small : normal;
  const words large = rest > 0x7f800000 ? words() + 0x7e00 : words() + 0x7c00;
  put_words(sign | (rest >= 0x477ff000 ? large : finite), h);
#endif
}

// ---- 8 bits: whole numbers, from memory and to it

using integers = vector<std::int32_t>;

// Each byte as the upper one of a word.
SCHUSS_INLINE words upper_bytes(const void* codes) {
#if defined(__AVX512F__)
  const __m128i found = _mm_loadu_si128(static_cast<const __m128i*>(codes));
  return (words)_mm512_maskz_cvtepu8_epi32(0xffff, found) << 24;
#elif defined(__AVX2__)
  const __m256i upper =
      _mm256_setr_epi8(-1, -1, -1, 0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3,  //
                       -1, -1, -1, 4, -1, -1, -1, 5, -1, -1, -1, 6, -1, -1, -1, 7);
  long long eight;
  __builtin_memcpy(&eight, codes, sizeof eight);
  return (words)_mm256_shuffle_epi8(_mm256_set1_epi64x(eight), upper);
#else
  vector<std::uint8_t, register_bytes / 4> found;
  __builtin_memcpy(&found, codes, sizeof found);
  return __builtin_convertvector(found, words) << 24;
#endif
}

// Stores the words of four registers, each a number of 8 bits, one after another.
template <bool negative> SCHUSS_INLINE void put_bytes(const words* from, void* codes) {
#if defined(__AVX512F__)
  for (int part = 0; part < 4; ++part)
    _mm_storeu_si128(static_cast<__m128i*>(codes) + part,
                     _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)from[part]));
#elif defined(__AVX2__)
  const __m256i low = _mm256_packs_epi32((__m256i)from[0], (__m256i)from[1]);
  const __m256i high = _mm256_packs_epi32((__m256i)from[2], (__m256i)from[3]);
  const __m256i bytes = negative ? _mm256_packs_epi16(low, high) : _mm256_packus_epi16(low, high);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(static_cast<__m256i*>(codes), _mm256_permutevar8x32_epi32(bytes, order));
#else
  for (std::size_t part = 0; part < 4; ++part) {
    const auto low = __builtin_convertvector(from[part], vector<std::uint8_t, register_bytes / 4>);
    __builtin_memcpy(static_cast<char*>(codes) + part * sizeof low, &low, sizeof low);
  }
#endif
}

// |a|; and a, or -a where b is negative.
SCHUSS_INLINE integers magnitude(integers a) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (integers)_mm256_abs_epi32((__m256i)a);
#else
  return a < 0 ? -a : a;
#endif
}
SCHUSS_INLINE integers negated(integers a, integers b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (integers)_mm256_sign_epi32((__m256i)a, (__m256i)b);  // 0 where b is: so is a, then
#else
  return b < 0 ? -a : a;
#endif
}

SCHUSS_INLINE integers larger(integers a, integers b) { return a > b ? a : b; }
SCHUSS_INLINE integers smaller(integers a, integers b) { return a < b ? a : b; }

// The largest element, none of which is negative.
SCHUSS_INLINE std::int32_t largest(integers a) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256i low = _mm512_maskz_extracti64x4_epi64(0xf, (__m512i)a, 0);
  const __m256i eight = _mm256_max_epi32(low, _mm512_maskz_extracti64x4_epi64(0xf, (__m512i)a, 1));
#else
  const __m256i eight = (__m256i)a;
#endif
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
#else
  std::int32_t found = a[0];
  for (int i = 1; i < 4; ++i) found = a[i] > found ? a[i] : found;
  return found;
#endif
}

}  // namespace
}  // namespace schuss
