// What crosses the boundary between the driver, compiled once, and the kernels, compiled once an
// instruction set: plain structs and function pointers. Nothing here may have code, or the linker
// would keep one instruction set's copy of it for all.
#pragma once

#include <cstddef>
#include <cstdint>

namespace schuss {

// How the elements of a stream are stored. Kinds narrower than the compute type, those from float16
// on, are brought to it in registers (storage.hpp). `none` is a stream that isn't there.
enum class kind : unsigned char {
  none,
  float32,
  float64,
  outer,  // a product that isn't stored: each element is multiplied out where it is read
  sum,    // of pieces, which isn't stored either
  float16,
  bfloat16,
  remainder,  // 16 bits: what a float32 is more than the bfloat16 beside it
  signed8,    // codes of blockfloat8, with a scale for each block beside them
  unsigned8
};

// One array of a span. The compute type is that of the parameter: float64, or else float32.
struct stream {
  void* data;
  schuss::kind kind;
  std::ptrdiff_t width;    // bytes of an element
  void* beside = nullptr;  // of a remainder the bfloat16 numbers, of codes the scales; else nothing
};

// What a rule says of a state array: how it is rounded to what is narrower than the compute type.
// By chance, the dither of elements.hpp, where a step may change it by less than the spacing of
// 16 bits; without it that would be lost, and a second moment never decay. In 8 bits that is so of
// all but peaks.
enum trait : unsigned char {
  dithered = 1,
  positive = 2,  // never negative
  alone = 4,     // no mean or sum of what is small: not for 8 bits

  mean = 0,
  slow = dithered,
  second = dithered | positive,
  peak = positive,
  exact = alone,
  point = alone | dithered
};

// The data of a stream of kind `outer`, in the compute type. Matrices lie behind one another, each
// as `height` lines of `width` elements; an element is the factor of its line times that of its
// place in its matrix' lines.
struct outer {
  const void *lines, *columns;
  std::ptrdiff_t height, width;
};

// The data of a stream of kind `sum`: pieces[0].weight*pieces[0] + pieces[1].weight*pieces[1] +
// ..., times the factor of its row. Each number is rounded to the compute type.
struct piece {
  void* data;
  schuss::kind kind;
  double weight;
};
struct sum {
  const piece* pieces;
  std::ptrdiff_t count;
  std::ptrdiff_t first;     // the element that pieces begin at
  const double* factors;    // of each row from there on, or null: all 1
  std::ptrdiff_t row_size;  // elements
};

// The rows of an array that are all a step is of: the elements of its span are theirs, one row
// behind the other. Their gradients are sums.
struct rows {
  const std::ptrdiff_t* numbers;  // of each; ascending where something of them is summed
  const std::ptrdiff_t* begins;   // of each the first of its pieces, and the end; or null:
  const piece* pieces;            // then there is one, of which each has a row
  const double* factors;          // of each one's gradient, or null: all 1
  const std::size_t* sets;        // of each the number of its set of scalars, or null: the span's
};

constexpr int most_states = 4;    // state arrays of one rule
constexpr int most_scalars = 16;  // members of one rule
constexpr int most_sums = 6;      // what is measured of an array
constexpr int most_reports = 3;   // what a step reports of it: sums of squares of g, u and x

// The stages in the order of a step, each with the value that changes nothing and is passed over.
// Python compares names and values with its own.
// clang-format off
#define SCHUSS_STAGES(stage) \
  stage(fade_x, 1)           \
  stage(drift, 0)            \
  stage(fade_0, 1)           \
  stage(fade_1, 1)           \
  stage(scale, 1)            \
  stage(clip, infinite)      \
  stage(l2, 0)               \
  stage(l1, 0)               \
  stage(agree, 1)            \
  stage(oppose, 1)           \
  stage(keep, 1)             \
  stage(masked, 0)           \
  stage(after, 1)            \
  stage(threshold, 0)        \
  stage(low, -infinite)      \
  stage(high, infinite)      \
  stage(average, 0)          \
  stage(flush, 1)            \
  stage(zero_grad, 0)        \
  stage(stochastic, 0)       \
  stage(key, 0)
// clang-format on

// One set of scalars: every span of the same group and step count shares it. Computed in double,
// rounded once to the compute type.
struct scalars {
  int rule;               // its place in the table
  double fade_x, drift;   // x = fade_x*x - drift*s0: what steps without a gradient would have
  double fade_0, fade_1;  // s0 = fade_0*s0, s1 = fade_1*s1: done, of the first two state arrays
  double scale;           // g = scale*g: 1/grad_scale, negative to maximize
  double clip;            // g = clamp(g, -clip, clip)
  double l2, l1;          // g = (g + l2*x) + l1*sign(x)
  double agree;           // u = agree*u where u and g have the same sign
  double oppose;          // u = oppose*u elsewhere
  double keep;            // x = keep*x - u: decoupled weight decay
  double masked;          // not 0: x = x - u where u and x differ in sign
  double after;           // x = after*x: proximal weight decay
  double threshold;       // x = x - clamp(x, -threshold, threshold)
  double low, high;       // x = clamp(x, low, high), rounded inwards to numbers of x's kind, where
                          // the span has no bounds of its own
  double average;         // e = e + average*(x - e), x where it is 1, if the span has one
  double flush;           // not 0: a state element below the smallest normal number is stored as 0
  double zero_grad;       // not 0: g = 0 when all is done
  double stochastic;      // not 0: x is rounded stochastically to its 16 bits
  double key;             // of this step's dither: a whole number below 2^32
  double share;           // of the squares of this step in the factors of a span that has some
  double floor;           // below which the mean of its rows isn't a divisor
  double rule_scalars[most_scalars];
};

// One array of parameters with its gradient and its state.
struct span {
  stream x, g, state[most_states];
  stream row, column;        // factors of a second moment that isn't stored (factors.hpp)
  stream master;             // what x is rounded from, in the compute type
  stream average;            // the running mean of x
  stream low, high;          // bounds of each element, which are numbers of x's kind
  std::ptrdiff_t size;       // elements
  std::ptrdiff_t row_size;   // elements whose sums begin anew: of a row, or all
  std::ptrdiff_t width;      // bytes of an element in all of them
  std::ptrdiff_t position;   // elements of the arrays before it, for the dither
  std::ptrdiff_t chunk;      // chunks of the spans before it, for what is summed of each
  const schuss::rows* rows;  // of which alone it is, or null: all of the array
  double* report;            // room for most_reports sums of each of its chunks, or null
  std::size_t set;           // number of its set of scalars
};

// Updates spans that share a set of scalars: from element `first` of the first one to `last` of the
// last one. All in one call: with a call for each, 200 arrays of 64 elements took 1.1 times as
// long.
using kernel = void (*)(const span* begin, const span* end, std::ptrdiff_t first,
                        std::ptrdiff_t last, const scalars&);

// What the first sweep measures of each element: the squares of x, of the gradient that the rule is
// to see and of the update that it would return, whether these two have the same sign, and two
// numbers of the rule's own.
enum measured : unsigned { xx = 1, gg = 2, uu = 4, agree = 8, own = 16 };

// Writes most_sums sums of each chunk of a span, one after another, of the elements first <= i <
// last: those of which `wanted` has the bit, in the order of `measured`; 0 for the others. Nothing
// is changed.
using measure_kernel = void (*)(const span&, std::ptrdiff_t first, std::ptrdiff_t last,
                                const scalars&, unsigned wanted, double* sums);

struct rule {
  const char* name;
  int states, scalars;
  const trait* traits;  // of each state array
  bool measures;        // whether it measures something of its own
  kernel float32, float64;
  measure_kernel measure32, measure64;
};

// Writes the sum of the squares of scale*g of each chunk of a span, of the elements first <= i <
// last; returns whether all of them are finite.
using squares = bool (*)(const span&, std::ptrdiff_t first, std::ptrdiff_t last, double scale,
                         double* sum);

// Whether the gradient of these elements is finite as it is behind the stages scale and clip.
using scaled_check = bool (*)(const span&, std::ptrdiff_t first, std::ptrdiff_t last,
                              const scalars&);

// Adds the squares of the gradient as the rule is to see it, of a span whose state is `outer`, from
// element `first` to `last`, whole lines of one matrix: writes the sum of each line, and of each
// place in them.
using square_lines = void (*)(const span&, std::ptrdiff_t first, std::ptrdiff_t last,
                              const scalars&, double* lines, double* columns);

// Copies n elements of one stream to another one, both of float32 or narrower; rounds to nearest.
using conversion = void (*)(const stream& from, const stream& to, std::ptrdiff_t n);

// Writes elements first <= i < last of a span's gradient to its x, rounded to nearest.
using addition = void (*)(const span&, std::ptrdiff_t first, std::ptrdiff_t last);

// All rules of one instruction set, in the order of rules.hpp, and what all of them share.
struct table {
  const char* isa;
  const rule* rules;
  int size;
  squares add_squares;
  scaled_check scales_finite;
  square_lines add_lines;
  conversion convert;
  addition add;
  void (*divide)(const float* a, const float* b, std::ptrdiff_t n, float* quotients);
};

// Elements that a stage, or a conversion, goes through at a time: they stay in the L1 cache. In
// blocks of 256 it costs 2 to 8 % of a step more.
constexpr std::ptrdiff_t block = 512;

// Elements of an array, from its start, whose codes share a scale.
constexpr std::ptrdiff_t coded = 64;

// Where threads may cut an array: a multiple of every pack, and of a page in every type.
constexpr std::ptrdiff_t chunk = 4096;

}  // namespace schuss
