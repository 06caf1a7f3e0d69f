// What crosses the boundary between the driver, compiled once, and the kernels, compiled once an
// instruction set: plain structs and function pointers. Nothing here may have code, or the linker
// would keep one instruction set's copy of it for all.
#pragma once

#include <cstddef>

namespace schuss {

// How the elements of a stream are stored. Kinds narrower than the compute type are brought to it,
// block by block.
enum class kind : unsigned char { float32, float64 };

// One array of a span. The compute type is that of the parameter.
struct stream {
  void* data;
  schuss::kind kind;
  std::ptrdiff_t width;  // bytes of an element
};

constexpr int most_states = 4;    // state arrays of one rule
constexpr int most_scalars = 12;  // members of one rule

// One set of scalars: every span of the same group and step count shares it. Computed in double,
// rounded once to the compute type.
struct scalars {
  int rule;      // its place in the table
  double scale;  // g = scale*g: 1/grad_scale, negative to maximize
  double l2;     // g = g + l2*x
  double keep;   // x = keep*x - u: decoupled weight decay
  double flush;  // not 0: a state element below the smallest normal number is stored as 0
  double rule_scalars[most_scalars];
};

// One array of parameters with its gradient and its state.
struct span {
  stream x, g, state[most_states];
  std::ptrdiff_t size;  // elements
  std::size_t set;      // number of its set of scalars
};

// Updates the elements first <= i < last of a span; first is a multiple of the block.
using kernel = void (*)(const span&, std::ptrdiff_t first, std::ptrdiff_t last, const scalars&);

struct rule {
  const char* name;
  int states, scalars;
  kernel float32, float64;
};

// All rules of one instruction set, in the order of rules.hpp.
struct table {
  const char* isa;
  const rule* rules;
  int size;
};

// Elements of a block, counted from the array's start: 256 cost nothing against a direct loop from
// 4k to 64M elements.
constexpr std::ptrdiff_t block = 256;

// Where threads may cut an array: a multiple of the block, and of a page in every type.
constexpr std::ptrdiff_t chunk = 4096;

}  // namespace schuss
