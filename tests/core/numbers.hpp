// The numbers of golden.txt and their hashes. All of it is integers: no compiler, library or
// processor can make others of them.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernel.hpp"

namespace schuss {

using word = std::uint64_t;

// A bijection of 64 bits that leaves none of them alone (Steele, Lea, Flood, "Fast splittable
// pseudorandom number generators", 2014).
constexpr word mix(word bits) {
  bits += 0x9e3779b97f4a7c15;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111eb;
  return bits ^ (bits >> 31);
}

// The bits of a kind: behind the sign so many of an exponent and of a fraction.
struct layout_of_bits {
  int exponent, fraction;

  constexpr word sign() const { return word{1} << (exponent + fraction); }
  constexpr word infinity() const { return ((word{1} << exponent) - 1) << fraction; }
  constexpr word one() const { return ((word{1} << (exponent - 1)) - 1) << fraction; }
  constexpr word least() const { return word{1} << fraction; }  // of the normal numbers
};
constexpr layout_of_bits bits_of(kind k) {
  if (k == kind::float64) return {11, 52};
  if (k == kind::float16) return {5, 10};
  return {8, k == kind::bfloat16 ? 7 : 23};
}

enum sign { of_either_sign, never_negative, never_positive };

inline word signed_as(layout_of_bits f, sign of, word bits) {
  if (of == never_negative) return bits & ~f.sign();
  return of == never_positive ? bits | f.sign() : bits;
}

// A number by chance, from 2^-7 to 1.
inline word number(layout_of_bits f, sign of, word random) {
  const word fraction = random >> (64 - f.fraction), octave = (random >> 1) % 7 + 1;
  return signed_as(f, of, f.one() - octave * f.least() + fraction + (random % 2) * f.sign());
}

// One of the numbers in which something ends. The square of the tenth, and of no smaller power of
// two, is infinite.
constexpr word corners = 11;
inline word corner(layout_of_bits f, sign of, word which) {
  const word bits[corners] = {0,
                              f.sign(),
                              1,
                              f.sign() + f.least() - 1,
                              f.least(),
                              f.sign() + f.infinity() - 1,
                              f.infinity(),
                              f.sign() + f.infinity(),
                              f.infinity() + f.least() / 2,
                              f.one() + (f.one() + f.least()) / 2,
                              f.sign() + f.one()};
  return signed_as(f, of, bits[which % corners]);
}

// Of words in their order. Which NaN it is isn't promised, so that all count as one.
class digest {
 public:
  void add(word bits) { sum_ += mix(bits ^ mix(place_++)); }
  void add(layout_of_bits f, word bits) {
    const bool nan = (bits & ~f.sign()) > f.infinity();
    add(nan ? f.infinity() + f.least() / 2 : bits);
  }
  void add(double number) {
    word bits;
    std::memcpy(&bits, &number, sizeof bits);
    add(bits_of(kind::float64), bits);
  }
  word sum() const { return sum_; }

 private:
  word sum_ = 0, place_ = 0;
};

}  // namespace schuss
