// How a stream's elements, whatever they are stored in, become packs of the compute type and go
// back: in registers, within the loop that wants them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "elements.hpp"
#include "kernel.hpp"
#include "layout.hpp"
#include "pack.hpp"

namespace schuss {
namespace {

constexpr bool is(const stream& s) { return s.kind != kind::none; }

template <class T> SCHUSS_INLINE T* at(const stream& s, std::ptrdiff_t i) {
  return static_cast<T*>(s.data) + i;
}
SCHUSS_INLINE std::uint8_t* at_byte(void* data, std::ptrdiff_t i) {
  return static_cast<std::uint8_t*>(data) + i;
}

// Where chance comes from in a step: the place of an array's first element, and the step's key.
struct chance {
  std::uint32_t place, key;

  // The dither of elements from i on, in a state array, or in the parameter, which is -1.
  SCHUSS_INLINE words of(int state, std::ptrdiff_t i) const {
    const auto array = static_cast<std::uint32_t>(state + 1);
    return lattice(place + static_cast<std::uint32_t>(i), key + array * between_arrays);
  }
};

// ---- 16 bits by dither: x is rounded up with the probability of its distance from below, so that
// what 16 bits can hold stays, and a finite number stays finite.

// The 32 bits whose upper half is the bfloat16.
SCHUSS_INLINE words dithered_bfloat16(pack<float> x, words random) {
  constexpr float most = 0x1.fep127f;
  const words chance = (words)(fabs(x) < pack<float>(most)).v & (random >> 16);
  return ((words)x.v + chance) | (words)(x != x).v;
}

// Where float16's spacing is that of its subnormal numbers, 2^-24, the sum with 1/2 finds the
// nearest; all that follows is exact.
SCHUSS_INLINE pack<float> dithered_float16(pack<float> x, words random) {
  using T = pack<float>;
  constexpr std::uint32_t dropped = 0x1fff;
  const words u = (words)x.v;
  const T size = fabs(x), normal = (vector<float>)((u + (random >> 19)) & ~dropped);
  const T nearest = (size + 0.5f) - 0.5f, beyond = size - nearest;
  const T least = T(__builtin_convertvector((integers)(random >> 8), vector<float>)) * 0x1p-48f;
  const T up = select(beyond > least, T(0x1p-24f), T(0));
  const T down = select(beyond <= least - 0x1p-24f, T(0x1p-24f), T(0));
  const T small = (vector<float>)((words)((nearest + up) - down).v | (u & 0x80000000));
  const T rounded = select(size < T(0x1p-14f), small, clamp(normal, T(-65504), T(65504)));
  return select(size <= T(std::numeric_limits<float>::max()), rounded, x);
}

// ---- blockfloat8: codes of 64 elements from the array's start, and a scale byte for each block
//
// The scale is the exponent of the block's largest magnitude, a power of two that is next to it or
// above. A code k is the float with the bits base + (k << 19), less that with the bits base: 16
// steps an octave, of which the last one goes down to 0. Unsigned it has 16 octaves; signed 8, and
// a sign. Of a block with a NaN or an infinity all elements are read as NaN.
template <kind k> struct code {
  static constexpr bool negative = k == kind::signed8;
  static constexpr std::int32_t octaves = negative ? 8 : 16, steps = 19;
  static constexpr std::int32_t infinite = 0x7f800000, nothing = 255;
  static constexpr std::int32_t most = 0x7f6fffff;  // bits of the largest number that is coded
  // Of the scale: code 1 is 2^-106 or 2^-98 then, and a subnormal number is lost in the sum.
  static constexpr std::int32_t least = 40;

  static std::int32_t base(std::int32_t scale) {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(scale - octaves + 1) << 23);
  }
  static integers all(std::int32_t one) { return integers() + one; }

  static pack<float> offset(std::int32_t scale) {
    return (vector<float>)all(scale == nothing ? -1 : base(scale));
  }
  // A number that is not negative, with the sign of an integer.
  SCHUSS_INLINE static pack<float> with_sign(pack<float> a, integers of) {
    return (vector<float>)((integers)a.v | (of & std::numeric_limits<std::int32_t>::min()));
  }
  SCHUSS_INLINE static pack<float> decoded(words upper, std::int32_t base, pack<float> offset) {
    constexpr int down = 24 - steps;
    const words size = (negative ? (words)magnitude((integers)upper) : upper) >> down;
    const pack<float> found = pack<float>((vector<float>)((integers)size + base)) - offset;
    if constexpr (negative)
      return with_sign(found, (integers)upper);
    else
      return found;
  }

  SCHUSS_INLINE static integers size_of(const float* numbers) {
    return (integers)fabs(pack<float>::from(numbers)).v;
  }
  static integers top_of(const float* numbers) {
    constexpr std::ptrdiff_t size = pack<float>::size;
    integers top{}, other{};
    for (const float* const end = numbers + coded; numbers != end; numbers += 4 * size) {
      top = larger(top, larger(size_of(numbers), size_of(numbers + size)));
      other = larger(other, larger(size_of(numbers + 2 * size), size_of(numbers + 3 * size)));
    }
    return larger(top, other);
  }

  // Stores the scale of a block's numbers and returns it as one to encode them with; `top` has the
  // largest bits of their magnitudes. Of the numbers from `valid` on, which are not the array's,
  // and where no scale goes, it makes others.
  SCHUSS_INLINE static std::int32_t settle(integers top, float* numbers, std::ptrdiff_t valid,
                                           std::uint8_t* scale) {
    constexpr std::int32_t rounds_up = 1 << 20;
    std::int32_t found = largest(top);
    bool marked = false;
    if (__builtin_expect(found > most || valid < coded, 0)) {
      for (std::ptrdiff_t i = valid; i < coded; ++i) numbers[i] = 0;
      found = largest(top_of(numbers));
      marked = found >= infinite;
      if (found > most) found = fit(numbers, marked ? 0 : most);
    }
    const std::int32_t rounded = (found + rounds_up) >> 23;
    const std::int32_t exponent = rounded < least ? least : rounded;
    *scale = static_cast<std::uint8_t>(marked ? nothing : exponent);
    return exponent;
  }
  [[gnu::noinline, gnu::cold]] static std::int32_t fit(float* numbers, std::int32_t largest) {
    for (std::ptrdiff_t i = 0; i < coded; i += pack<float>::size) {
      const pack<float> fitting = (vector<float>)smaller(size_of(numbers + i), all(largest));
      with_sign(fitting, (integers)pack<float>::from(numbers + i).v).to(numbers + i);
    }
    return largest;
  }

  // The codes of a pack, with a block's base; `at` is its dither.
  SCHUSS_INLINE static words encoded(const float* numbers, integers base, words at) {
    const integers bits = size_of(numbers);
    const pack<float> sum = pack<float>((vector<float>)bits) + pack<float>((vector<float>)base);
    const integers k8 = ((integers)sum.v - base + (integers)(at >> (32 - steps))) >> steps;
    if constexpr (negative)
      return (words)negated(k8, (integers)pack<float>::from(numbers).v);
    else
      return (words)larger(k8, smaller(bits >> 23, all(1)));  // what is normal doesn't become 0
  }

  // Brings n elements, whole packs of one block, to a buffer.
  SCHUSS_INLINE static void open(const std::uint8_t* codes, std::int32_t scale, std::ptrdiff_t n,
                                 float* numbers) {
    const std::int32_t zero = base(scale);
    const pack<float> above = offset(scale);
    for (std::ptrdiff_t i = 0; i < n; i += pack<float>::size)
      decoded(upper_bytes(codes + i), zero, above).to(numbers + i);
  }

  // Stores n numbers, whole blocks, of which those from `valid` on are not the array's; `at` is the
  // dither of the first pack, and grows by `next`. All scales come first: each takes some time to
  // be found.
  SCHUSS_INLINE static void close(float* numbers, std::ptrdiff_t n, std::ptrdiff_t valid,
                                  std::uint8_t* codes, std::uint8_t* scales, words at, words next) {
    constexpr std::ptrdiff_t size = pack<float>::size;
    std::int32_t zeros[block / coded];
    for (std::ptrdiff_t i = 0; i < n; i += coded)
      zeros[i / coded] =
          base(settle(top_of(numbers + i), numbers + i, valid - i, scales + i / coded));
    for (std::ptrdiff_t i = 0; i < n; i += coded) {
      const integers zero = all(zeros[i / coded]);
      for (std::ptrdiff_t from = i; from < i + coded; from += 4 * size) {
        const words two = next + next;
        const words four[] = {encoded(numbers + from, zero, at),
                              encoded(numbers + from + size, zero, at + next),
                              encoded(numbers + from + 2 * size, zero, at + two),
                              encoded(numbers + from + 3 * size, zero, at + two + next)};
        put_bytes<negative>(four, codes + from);
        at += two + two;
      }
    }
  }
};

// ---- Any kind

// bits(x) = (bits(w) << 16) + c: w is x rounded to nearest, halves away from 0. A NaN is the one of
// all bits, and its remainder 0.
SCHUSS_INLINE pack<float> join_remainder(const void* w, const void* c) {
  using shorts = vector<std::int16_t, register_bytes / 2>;
  shorts found;
  __builtin_memcpy(&found, c, sizeof found);
  return (vector<float>)((words_of(w) << 16) + (words) __builtin_convertvector(found, integers));
}
SCHUSS_INLINE void split_remainder(pack<float> x, void* w, void* c) {
  const words u = (words)x.v, none = (words)(x != x).v;
  put_upper((u + 0x8000) | none, w);
  put_words(u & ~none & 0xffff, c);
}

// The pack of elements from i on that are stored in a kind, and back: to nearest, or by a dither.
// Codes go by the block.
template <class T, kind k>
SCHUSS_INLINE pack<T> load(const void* data, std::ptrdiff_t i, const void* beside = nullptr) {
  static_assert(!has_codes(k));
  if constexpr (k == kind::bfloat16)
    return widen_bfloat16(static_cast<const std::uint16_t*>(data) + i);
  else if constexpr (k == kind::float16)
    return widen_float16(static_cast<const std::uint16_t*>(data) + i);
  else if constexpr (k == kind::remainder)
    return join_remainder(static_cast<const std::uint16_t*>(beside) + i,
                          static_cast<const std::uint16_t*>(data) + i);
  else
    return pack<T>::from(static_cast<const T*>(data) + i);
}

template <class T, kind k>
SCHUSS_INLINE void store(void* data, std::ptrdiff_t i, pack<T> from, void* beside = nullptr) {
  static_assert(!has_codes(k));
  if constexpr (k == kind::bfloat16)
    narrow_bfloat16(from, static_cast<std::uint16_t*>(data) + i);
  else if constexpr (k == kind::float16)
    narrow_float16(from, static_cast<std::uint16_t*>(data) + i);
  else if constexpr (k == kind::remainder)
    split_remainder(from, static_cast<std::uint16_t*>(beside) + i,
                    static_cast<std::uint16_t*>(data) + i);
  else
    from.to(static_cast<T*>(data) + i);
}

template <kind k>
SCHUSS_INLINE void store(void* data, std::ptrdiff_t i, pack<float> from, words random) {
  auto* const to = static_cast<std::uint16_t*>(data) + i;
  if constexpr (k == kind::bfloat16)
    put_upper(dithered_bfloat16(from, random), to);
  else
    narrow_float16(dithered_float16(from, random), to);
}

// Calls work(kind_is<k>()) for a stream's kind, where the compute type is float32: one that is
// loaded and stored by the pack, or any.
template <kind k> struct kind_is {
  static constexpr kind value = k;
};
template <class T, class Work> SCHUSS_INLINE auto of_pack_kind(kind k, const Work& work) {
  if constexpr (std::is_same_v<T, float>) {
    if (k == kind::bfloat16) return work(kind_is<kind::bfloat16>());
    if (k == kind::float16) return work(kind_is<kind::float16>());
    if (k == kind::remainder) return work(kind_is<kind::remainder>());
  }
  return work(kind_is<kind::none>());
}
template <class T, class Work> SCHUSS_INLINE auto of_kind(kind k, const Work& work) {
  if constexpr (std::is_same_v<T, float>) {
    if (k == kind::signed8) return work(kind_is<kind::signed8>());
    if (k == kind::unsigned8) return work(kind_is<kind::unsigned8>());
  }
  return of_pack_kind<T>(k, work);
}

template <class T> SCHUSS_INLINE pack<T> load(const stream& s, std::ptrdiff_t i) {
  return of_pack_kind<T>(s.kind, [&](auto as) { return load<T, as.value>(s.data, i, s.beside); });
}
template <class T> SCHUSS_INLINE void store(const stream& s, std::ptrdiff_t i, pack<T> from) {
  of_pack_kind<T>(s.kind, [&](auto as) { store<T, as.value>(s.data, i, from, s.beside); });
}

// Writes n elements from i on of a stream of kind `outer`.
template <class T>
[[gnu::noinline]] T* multiply(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n, T* buffer) {
  const outer& of = *static_cast<const outer*>(s.data);
  std::ptrdiff_t line = i / of.width, column = i % of.width;
  for (std::ptrdiff_t k = 0; k < n; ++line, column = 0) {
    const T factor = static_cast<const T*>(of.lines)[line];
    const T* from = static_cast<const T*>(of.columns) + line / of.height * of.width + column;
    const std::ptrdiff_t end = n - k < of.width - column ? n : k + of.width - column;
    for (; k + pack<T>::size <= end; k += pack<T>::size, from += pack<T>::size)
      (pack<T>(factor) * pack<T>::from(from)).to(buffer + k);
    if (k == end) continue;
    T rest[pack<T>::size] = {};
    const auto left = static_cast<std::size_t>(end - k) * sizeof(T);
    __builtin_memcpy(rest, from, left);
    (pack<T>(factor) * pack<T>::from(rest)).to(rest);
    __builtin_memcpy(buffer + k, rest, left);
    k = end;
  }
  return buffer;
}

// Elements of a piece as packs: calls work(k, pack) for those from i + k on, the last of them
// filled up with zeros. The next block is asked for: before it is read other pieces are, and the
// processor forgets that it read on here.
template <class T, class Work>
SCHUSS_INLINE void each_of(const piece& of, std::ptrdiff_t i, std::ptrdiff_t n, const Work& work) {
  constexpr std::ptrdiff_t size = pack<T>::size, line = 64;
  of_pack_kind<T>(of.kind, [&](auto as) {
    const std::ptrdiff_t left = n % size, whole = n - left, width = width_of(of.kind);
    for (std::ptrdiff_t k = 0; k < whole; k += size) {
      const char* const at = static_cast<const char*>(of.data) + (i + k) * width;
      if (k * width % line == 0) __builtin_prefetch(at + block * width);
      work(k, load<T, as.value>(of.data, i + k));
    }
    if (left == 0) return;
    alignas(register_bytes) char room[register_bytes] = {};
    __builtin_memcpy(room, static_cast<const char*>(of.data) + (i + whole) * width,
                     static_cast<std::size_t>(left * width));
    work(whole, load<T, as.value>(room, 0));
  });
}

// Multiplies n elements of a sum, from one on, by the factors of their rows.
template <class T>
void scale_rows(const sum& of, std::ptrdiff_t first, std::ptrdiff_t n, T* buffer) {
  constexpr std::ptrdiff_t size = pack<T>::size;
  std::ptrdiff_t row = first / of.row_size, left = (row + 1) * of.row_size - first;
  for (std::ptrdiff_t k = 0; k < n; k += size) {
    T own[pack<T>::size] = {};
    const std::ptrdiff_t count = n - k < size ? n - k : size;
    pack<T> factors = static_cast<T>(of.factors[row]);
    if (left < count) {  // rows end within this pack
      for (std::ptrdiff_t i = 0; i < count; ++i, --left) {
        if (left == 0) ++row, left = of.row_size;
        own[i] = static_cast<T>(of.factors[row]);
      }
      factors = pack<T>::from(own);
    } else {
      left -= count;
    }
    (factors * pack<T>::from(buffer + k)).to(buffer + k);
    if (left == 0) ++row, left = of.row_size;
  }
}

// Writes n elements from i on of a stream of kind `sum`, and some more up to a whole pack.
template <class T>
[[gnu::noinline]] T* add_up(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n, T* buffer) {
  const sum& of = *static_cast<const sum*>(s.data);
  const std::ptrdiff_t from = i - of.first;
  for (const piece* one = of.pieces; one != of.pieces + of.count; ++one) {
    const pack<T> weight = static_cast<T>(one->weight);
    if (one == of.pieces)
      each_of<T>(*one, from, n, [&](std::ptrdiff_t k, pack<T> d) { (weight * d).to(buffer + k); });
    else
      each_of<T>(*one, from, n, [&](std::ptrdiff_t k, pack<T> d) {
        (pack<T>::from(buffer + k) + weight * d).to(buffer + k);
      });
  }
  if (of.factors != nullptr) scale_rows(of, from, n, buffer);
  return buffer;
}

// Fills n elements from i on of a gradient with zeros.
inline void clear(const stream& g, std::ptrdiff_t i, std::ptrdiff_t n) {
  const auto zero = [n](void* data, std::ptrdiff_t from, std::ptrdiff_t width) {
    __builtin_memset(static_cast<char*>(data) + from * width, 0,
                     static_cast<std::size_t>(n * width));
  };
  if (g.kind != kind::sum) return zero(g.data, i, g.width);
  const sum& of = *static_cast<const sum*>(g.data);
  for (const piece* one = of.pieces; one != of.pieces + of.count; ++one)
    zero(one->data, i - of.first, width_of(one->kind));
}

// Brings n elements, whole packs, from i on, where a block of codes begins, to a buffer of the
// compute type.
template <class T>
SCHUSS_INLINE T* open(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n, T* buffer) {
  if (s.kind == kind::outer) return multiply(s, i, n, buffer);
  if (s.kind == kind::sum) return add_up(s, i, n, buffer);
  of_kind<T>(s.kind, [&](auto as) {
    if constexpr (has_codes(as.value)) {
      for (std::ptrdiff_t k = 0; k < n; k += coded)
        code<as.value>::open(at_byte(s.data, i + k), *at_byte(s.beside, (i + k) / coded),
                             n - k < coded ? n - k : coded, buffer + k);
    } else {
      for (std::ptrdiff_t k = 0; k < n; k += pack<T>::size)
        load<T, as.value>(s.data, i + k, s.beside).to(buffer + k);
    }
  });
  return buffer;
}

// And back, to nearest; not to codes.
template <class T>
SCHUSS_INLINE void close(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n, const T* buffer) {
  for (std::ptrdiff_t k = 0; k < n; k += pack<T>::size)
    store<T>(s, i + k, pack<T>::from(buffer + k));
}

// Whether what has a trait is rounded by chance where it is stored in a kind.
constexpr bool by_chance(trait how, kind k) {
  return has_codes(k) ? how != peak : narrow(k) && (how & dithered) != 0;
}

// The same for a state array of so many elements, or for the parameter, as its trait says. A code
// that is the nearest has the dither that is a half.
template <class T> [[gnu::noinline]] void close(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n,
                                                T* buffer, trait how, const chance& from, int state,
                                                std::ptrdiff_t size) {
  if (s.kind == kind::outer) return;
  if constexpr (std::is_same_v<T, float>) {
    const bool chances = by_chance(how, s.kind);
    words at = chances ? from.of(state, i) : words() + 0x80000000;
    const words next = words() + (chances ? between_packs : 0);
    if (chances || has_codes(s.kind))
      return of_kind<T>(s.kind, [&](auto as) {
        if constexpr (has_codes(as.value))
          code<as.value>::close(buffer, n, size - i, at_byte(s.data, i),
                                at_byte(s.beside, i / coded), at, next);
        else
          for (std::ptrdiff_t k = 0; k < n; k += pack<T>::size, at += next)
            store<as.value>(s.data, i + k, pack<T>::from(buffer + k), at);
      });
  }
  close(s, i, n, buffer);
}

// Elements from i on in the compute type: where they are, or n of them, whole packs, in a buffer.
template <class T>
SCHUSS_INLINE const T* opened(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n, T* buffer) {
  const bool wide = !derived(s.kind) && (std::is_same_v<T, double> || !narrow(s.kind));
  return wide ? at<T>(s, i) : open(s, i, n, buffer);
}

// The last n elements of an array in copies with room for so many more, up to a block of codes:
// whole packs can be read from them, which end in zeros, and written.
class rest {
 public:
  [[gnu::noinline]] rest(const span& a, std::ptrdiff_t from, std::ptrdiff_t n,
                         std::ptrdiff_t padded = 16)
      : copy(a), from_(from), n_(n) {
    copy.size = n;
    copy.position = a.position + from;
    int next = 0;
    const auto take = [&](stream& s) {
      char* const room = rooms_[next++];
      if (!is(s)) return;
      if (derived(s.kind)) return compute_rest(s, room);
      __builtin_memset(room, 0, static_cast<std::size_t>(padded * s.width));
      copy_bytes(room, static_cast<char*>(s.data) + from_ * s.width, n_ * s.width);
      s.data = room;
      if (has_codes(s.kind)) s.beside = at_byte(s.beside, from / coded);
    };
    take(copy.x), take(copy.g), take(copy.master), take(copy.average);
    take(copy.low), take(copy.high);
    for (stream& s : copy.state) take(s);
    if (copy.master.kind == kind::remainder) copy.master.beside = copy.x.data;
  }

  // Brings what a step writes to the array that was copied; of the gradient zeros, where it says
  // so.
  [[gnu::noinline]] void put_back(const span& a, bool gradient) const {
    const auto put = [this](const stream& s, const stream& from) {
      if (is(s) && !derived(s.kind))
        copy_bytes(static_cast<char*>(s.data) + from_ * s.width, from.data, n_ * s.width);
    };
    put(a.x, copy.x), put(a.master, copy.master), put(a.average, copy.average);
    if (gradient) clear(a.g, from_, n_);
    for (int s = 0; s < most_states; ++s) put(a.state[s], copy.state[s]);
  }

  span copy;

 private:
  // What isn't stored has no more to read from here on.
  void compute_rest(stream& s, void* room) const {
    const bool sums = s.kind == kind::sum;
    const kind of = sums ? static_cast<const sum*>(s.data)->pieces->kind : copy.x.kind;
    if (of == kind::float64)
      s = computed_rest<double>(s, room, kind::float64);
    else
      s = computed_rest<float>(s, room, kind::float32);
  }
  template <class T> stream computed_rest(const stream& s, void* room, kind own) const {
    T found[coded];
    open(s, from_, n_, found);
    __builtin_memset(room, 0, sizeof rooms_[0]);
    copy_bytes(room, found, n_ * static_cast<std::ptrdiff_t>(sizeof(T)));
    return {room, own, sizeof(T)};
  }
  static void copy_bytes(void* to, const void* from, std::ptrdiff_t bytes) {
    __builtin_memcpy(to, from, static_cast<std::size_t>(bytes));
  }

  std::ptrdiff_t from_, n_;
  alignas(64) char rooms_[6 + most_states][coded * sizeof(double)];
};

// Copies n elements of one stream to another one of float32 or narrower.
[[gnu::noinline]] void convert(const stream& from, const stream& to, std::ptrdiff_t n) {
  constexpr std::ptrdiff_t size = pack<float>::size;
  const std::ptrdiff_t whole = n / size * size;
  for (std::ptrdiff_t i = 0; i < whole; i += size) store<float>(to, i, load<float>(from, i));
  if (whole == n) return;
  span a{};
  a.x = to;
  a.g = from;
  const rest last(a, whole, n - whole);
  store<float>(last.copy.x, 0, load<float>(last.copy.g, 0));
  last.put_back(a, false);
}

// The smallest number of a kind that is not below a bound.
template <class T> [[gnu::noinline]] T least_from(double bound, kind k) {
  if constexpr (std::is_same_v<T, double>) return bound;
  const auto above = [](auto bits) {  // the next number, in a type with a sign bit
    return static_cast<decltype(bits)>((bits >> (8 * sizeof bits - 1)) != 0 ? bits - 1 : bits + 1);
  };
  float least = static_cast<float>(bound);
  stream wide{&least, kind::float32, sizeof least};
  std::uint32_t word;
  __builtin_memcpy(&word, &least, sizeof word);
  if (least < bound) word = above(word);
  __builtin_memcpy(&least, &word, sizeof word);
  if (!narrow(k)) return least;
  float found;
  std::uint16_t half = 0;
  const stream narrowed{&half, k, sizeof half};
  const stream widened{&found, kind::float32, sizeof found};
  convert(wide, narrowed, 1);
  convert(narrowed, widened, 1);
  if (found < least) {
    half = above(half);
    convert(narrowed, widened, 1);
  }
  return found;
}

}  // namespace
}  // namespace schuss
