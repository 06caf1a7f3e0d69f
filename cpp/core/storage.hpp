// How a stream's elements, whatever they are stored in, become packs of the compute type and go
// back: in registers, within the loop that wants them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernel.hpp"
#include "pack.hpp"

namespace schuss {
namespace {

// Whether a kind is narrower than the compute type.
constexpr bool narrow(kind k) { return k >= kind::float16; }

constexpr bool is(const stream& s) { return s.kind != kind::none; }

template <class T> SCHUSS_INLINE T* at(const stream& s, std::ptrdiff_t i) {
  return static_cast<T*>(s.data) + i;
}

// The pack of elements from i on that are stored in a kind, and back.
template <class T, kind k> SCHUSS_INLINE pack<T> load(const void* data, std::ptrdiff_t i) {
  if constexpr (k == kind::bfloat16)
    return widen_bfloat16(static_cast<const std::uint16_t*>(data) + i);
  else if constexpr (k == kind::float16)
    return widen_float16(static_cast<const std::uint16_t*>(data) + i);
  else
    return pack<T>::from(static_cast<const T*>(data) + i);
}

template <class T, kind k> SCHUSS_INLINE void store(void* data, std::ptrdiff_t i, pack<T> from) {
  if constexpr (k == kind::bfloat16)
    narrow_bfloat16(from, static_cast<std::uint16_t*>(data) + i);
  else if constexpr (k == kind::float16)
    narrow_float16(from, static_cast<std::uint16_t*>(data) + i);
  else
    from.to(static_cast<T*>(data) + i);
}

// Of a stream, in whatever kind it is.
template <class T> SCHUSS_INLINE pack<T> load(const stream& s, std::ptrdiff_t i) {
  if constexpr (std::is_same_v<T, float>) {
    if (s.kind == kind::bfloat16) return load<T, kind::bfloat16>(s.data, i);
    if (s.kind == kind::float16) return load<T, kind::float16>(s.data, i);
  }
  return load<T, kind::none>(s.data, i);
}

template <class T> SCHUSS_INLINE void store(const stream& s, std::ptrdiff_t i, pack<T> from) {
  if constexpr (std::is_same_v<T, float>) {
    if (s.kind == kind::bfloat16) return store<T, kind::bfloat16>(s.data, i, from);
    if (s.kind == kind::float16) return store<T, kind::float16>(s.data, i, from);
  }
  store<T, kind::none>(s.data, i, from);
}

// Brings n elements, whole packs, from i on to a buffer of the compute type, and back.
template <class T>
SCHUSS_INLINE T* open(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n, T* buffer) {
  for (std::ptrdiff_t k = 0; k < n; k += pack<T>::size) load<T>(s, i + k).to(buffer + k);
  return buffer;
}

template <class T>
SCHUSS_INLINE void close(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n, const T* buffer) {
  for (std::ptrdiff_t k = 0; k < n; k += pack<T>::size)
    store<T>(s, i + k, pack<T>::from(buffer + k));
}

// Elements from i on in the compute type: where they are, or n of them, whole packs, in a buffer.
template <class T>
SCHUSS_INLINE const T* opened(const stream& s, std::ptrdiff_t i, std::ptrdiff_t n, T* buffer) {
  return std::is_same_v<T, double> || !narrow(s.kind) ? at<T>(s, i) : open(s, i, n, buffer);
}

// The last n elements of an array, fewer than 16, in copies that have room for as many: whole packs
// can be read from them, which end in zeros, and written.
class rest {
 public:
  [[gnu::noinline]] rest(const span& a, std::ptrdiff_t from, std::ptrdiff_t n)
      : copy(a), from_(from), n_(n) {
    copy.size = n;
    copy.position = a.position + from;
    const auto take = [this](stream& s, int room) {
      if (!is(s)) return;
      __builtin_memset(rooms_[room], 0, sizeof rooms_[room]);
      copy_bytes(rooms_[room], static_cast<char*>(s.data) + from_ * s.width, n_ * s.width);
      s.data = rooms_[room];
    };
    take(copy.x, 0), take(copy.g, 1), take(copy.master, 2), take(copy.average, 3);
    take(copy.low, 4), take(copy.high, 5);
    for (int s = 0; s < most_states; ++s) take(copy.state[s], 6 + s);
  }

  // Brings what a step writes, of the gradient where it says so, to the array that was copied.
  [[gnu::noinline]] void put_back(const span& a, bool gradient) const {
    const auto put = [this](const stream& s, const stream& from) {
      if (is(s)) copy_bytes(static_cast<char*>(s.data) + from_ * s.width, from.data, n_ * s.width);
    };
    put(a.x, copy.x), put(a.master, copy.master), put(a.average, copy.average);
    if (gradient) put(a.g, copy.g);
    for (int s = 0; s < most_states; ++s) put(a.state[s], copy.state[s]);
  }

  span copy;

 private:
  static void copy_bytes(void* to, const void* from, std::ptrdiff_t bytes) {
    __builtin_memcpy(to, from, static_cast<std::size_t>(bytes));
  }

  std::ptrdiff_t from_, n_;
  alignas(64) char rooms_[6 + most_states][16 * sizeof(double)];
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
  const stream narrowed{&half, k, sizeof half}, widened{&found, kind::float32, sizeof found};
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
