// The arrays that a case of golden.txt steps: one has nothing but zeros, infinities, subnormal
// numbers and other corners, one has no elements, one a single one, and one several chunks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "driver.hpp"
#include "kernel.hpp"
#include "layout.hpp"
#include "numbers.hpp"

namespace schuss {

constexpr std::ptrdiff_t sizes[] = {15, 0, 125, 1, chunk + 577};
constexpr std::size_t of_corners = 2;  // which of them

// How parameter, gradient and state are stored. `signed8` stands for codes, as the traits say.
struct storage {
  kind x, g, state;
  bool remains = false;  // x is bfloat16 and has a remainder
};

// What is asked for around a rule, beside the numbers of the stages.
struct surroundings {
  scalars stages;
  bool bounds = false, master = false, report = false;
};

inline kind kind_of_state(kind stored, trait of) {
  if (stored != kind::signed8) return stored;
  if ((of & alone) != 0) return kind::float32;
  return (of & positive) != 0 ? kind::unsigned8 : kind::signed8;
}

// The streams of a span by number, which their numbers depend on; g has one for each step.
constexpr word x_of = 0, state_of = 1, scales_of = 8, average_of = 16, master_of = 17, low_of = 18,
               high_of = 19, g_of = 24, streams = 32;

// Adds the first n elements of a stream.
inline void add_elements(const stream& s, std::ptrdiff_t n, digest& all) {
  const bool is_number = !has_codes(s.kind) && s.kind != kind::remainder;
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    word bits = 0;
    std::memcpy(&bits, static_cast<const char*>(s.data) + i * s.width,
                static_cast<std::size_t>(s.width));
    is_number ? all.add(bits_of(s.kind), bits) : all.add(bits);
  }
}

class arrays {
 public:
  arrays(const rule& of, const storage& kinds, const surroundings& around)
      : rule_(of), kinds_(kinds) {
    std::ptrdiff_t position = 0, chunk_number = 0;
    for (std::size_t i = 0; i < std::size(sizes); ++i) {
      spans.push_back(span_of(i, around));
      span& a = spans.back();
      a.position = position;
      a.chunk = chunk_number;
      position += a.size;
      chunk_number += chunks(a);
    }
    sums.resize(static_cast<std::size_t>(chunk_number * most_sums));
    if (around.report)
      for (span& a : spans) a.report = sums.data() + a.chunk * most_reports;
  }

  // A new stream as long as one of the arrays.
  stream add_stream(std::size_t array, word number_of, kind k, sign of) {
    const std::ptrdiff_t size = sizes[array], width = width_of(k);
    stream s{reserve(size, width), k, width};
    if (has_codes(k)) s.beside = reserve((size + coded - 1) / coded, 1);
    fill(s, array, number_of, of);
    return s;
  }

  arrays(const arrays&) = delete;
  arrays& operator=(const arrays&) = delete;

  // New gradients, for the step of this number.
  void next_gradients(int step) {
    for (std::size_t i = 0; i < spans.size(); ++i)
      fill(spans[i].g, i, g_of + static_cast<word>(step), of_either_sign);
  }

  // All that a step may write, in order.
  void add_to(digest& all) const {
    for (const span& a : spans) {
      add(a, a.x, all);
      for (int s = 0; s < rule_.states; ++s) add(a, a.state[s], all);
      for (const stream* s : {&a.master, &a.average, &a.g}) add(a, *s, all);
    }
  }

  // The same of the sums of each array, `several` side by side, folded.
  void add_sums_to(digest& all, int several) {
    for (const span& a : spans) {
      double* const own = sums.data() + a.chunk * several;
      fold(a, own, several);
      if (a.size > 0)
        for (int s = 0; s < several; ++s) all.add(own[s]);
    }
  }

  // Nothing was written where nothing belongs.
  bool fences_stand() const {
    return std::all_of(rooms_.begin(), rooms_.end(), [](const room& one) {
      const auto stands = [](unsigned char byte) { return byte == fence; };
      return std::all_of(one.bytes.begin(), one.bytes.begin() + one.first, stands) &&
             std::all_of(one.bytes.begin() + one.last, one.bytes.end(), stands);
    });
  }

  std::vector<span> spans;
  std::vector<double> sums;

 private:
  struct room {
    std::vector<unsigned char> bytes;
    std::ptrdiff_t first, last;
  };
  static constexpr unsigned char fence = 0xa5;

  // Memory for so many elements, each stream's as many elements behind an aligned address as no
  // other one's.
  void* reserve(std::ptrdiff_t n, std::ptrdiff_t width) {
    constexpr std::ptrdiff_t line = 64;
    const auto count = static_cast<std::ptrdiff_t>(rooms_.size());
    rooms_.push_back(
        {std::vector<unsigned char>(static_cast<std::size_t>(n * width + 4 * line), fence), 0, 0});
    room& one = rooms_.back();
    const auto address = reinterpret_cast<std::uintptr_t>(one.bytes.data()) % line;
    one.first = 2 * line - static_cast<std::ptrdiff_t>(address) + count * 7 % 16 * width % line;
    one.last = one.first + n * width;
    return one.bytes.data() + one.first;
  }

  span span_of(std::size_t i, const surroundings& around) {
    const kind own = kinds_.x == kind::float64 ? kind::float64 : kind::float32;
    span a{};
    a.size = a.row_size = sizes[i];
    a.set = i % 2;
    a.x = add_stream(i, x_of, kinds_.x, of_either_sign);
    a.g = add_stream(i, g_of, kinds_.g, of_either_sign);
    for (int s = 0; s < rule_.states; ++s) {
      const trait how = rule_.traits[s];
      a.state[s] = add_stream(i, state_of + static_cast<word>(s), kind_of_state(kinds_.state, how),
                              (how & positive) != 0 ? never_negative : of_either_sign);
    }
    if (kinds_.remains) {
      a.master = add_stream(i, master_of, kind::remainder, of_either_sign);
      a.master.beside = a.x.data;
    } else if (around.master && narrow(kinds_.x)) {
      a.master = add_stream(i, master_of, own, of_either_sign);
    }
    if (around.stages.average != 0) a.average = add_stream(i, average_of, own, of_either_sign);
    if (around.bounds) {
      a.low = add_stream(i, low_of, kinds_.x, never_positive);
      a.high = add_stream(i, high_of, kinds_.x, never_negative);
    }
    a.width = a.x.width + a.g.width + a.master.width + a.average.width;
    for (const stream& s : a.state) a.width += s.width;
    return a;
  }

  static void put(void* to, std::ptrdiff_t i, std::ptrdiff_t width, word bits) {
    std::memcpy(static_cast<char*>(to) + i * width, &bits, static_cast<std::size_t>(width));
  }

  // Corners go by the place, so that each of x meets each of g, and both those of a state.
  void fill(const stream& s, std::size_t array, word number_of, sign of) {
    const word key = mix(array * streams + number_of);
    const bool has_corners = array == of_corners;
    for (std::ptrdiff_t i = 0; i < sizes[array]; ++i) {
      const word random = mix(key + static_cast<word>(i)), place = static_cast<word>(i);
      if (s.kind == kind::remainder) {
        put(s.data, i, s.width, has_corners ? 0 : random);
      } else if (has_codes(s.kind)) {
        const word most = s.kind == kind::signed8 ? 127 : 255;
        const word code = random % (most + 1);
        put(s.data, i, 1, s.kind == kind::signed8 && (random >> 32) % 2 == 1 ? 256 - code : code);
        if (i % coded == 0)
          put(s.beside, i / coded, 1, has_corners && i == 0 ? 255 : 120 + (random >> 40) % 8);
      } else if (has_corners && number_of < low_of) {
        const word which = number_of == x_of ? place : place * (number_of + 1) + place / corners;
        put(s.data, i, s.width, corner(bits_of(s.kind), of, which));
      } else if (has_corners && number_of >= g_of) {
        put(s.data, i, s.width, corner(bits_of(s.kind), of, place / corners + number_of - g_of));
      } else {
        put(s.data, i, s.width, number(bits_of(s.kind), of, random));
      }
    }
  }

  static void add(const span& a, const stream& s, digest& all) {
    if (s.kind == kind::none) return;
    add_elements(s, a.size, all);
    if (has_codes(s.kind)) add_elements({s.beside, s.kind, 1}, (a.size + coded - 1) / coded, all);
  }

  const rule& rule_;
  storage kinds_;
  std::deque<room> rooms_;
};

}  // namespace schuss
