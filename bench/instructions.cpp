// Calls every kernel on arrays of a fixed size, for Valgrind to count its instructions:
// .ci/count_instructions.py runs it and compares the counts with those recorded.
//
// The target `instructions` of CMakeLists.txt, built only when asked for, as it wants Valgrind's
// header. Tells Valgrind the name of each count and what it is to be divided by; prints what the
// counts depend on.
#include <valgrind/callgrind.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "driver.hpp"

namespace schuss {
namespace {

constexpr std::ptrdiff_t n = chunk + 13;  // whole blocks and an odd tail, in two chunks
constexpr std::ptrdiff_t arrays = 1000;   // of one element, for the driver
constexpr unsigned all_sums = measured::xx | measured::gg | measured::uu | measured::agree;

std::string name(kind type) {
  if (type == kind::float32) return "float32";
  if (type == kind::float64) return "float64";
  return type == kind::float16 ? "float16" : "bfloat16";
}

// Not the first call, which links the functions of the C library.
template <class Work> void count(const std::string& what, std::ptrdiff_t per, const Work& work) {
  const std::string label = what + " / " + std::to_string(per);
  work();
  CALLGRIND_ZERO_STATS;
  work();
  CALLGRIND_DUMP_STATS_AT(label.c_str());
}

// n elements that are all 1/2, in one of the memories.
stream halves(kind type, int memory) {
  static double memories[most_states + 3][n];
  void* const data = memories[memory];
  if (type == kind::float64) {
    std::fill_n(static_cast<double*>(data), n, 0.5);
    return {data, type, 8};
  }
  if (type == kind::float32) {
    std::fill_n(static_cast<float*>(data), n, 0.5f);
    return {data, type, 4};
  }
  const stream narrow{data, type, 2};
  std::vector<float> wide(n, 0.5f);
  kernels().convert({wide.data(), kind::float32, sizeof(float)}, narrow, n);
  return narrow;
}

stream parameter(kind type) { return halves(type, 0); }
stream gradient(kind type) { return halves(type, 1); }
stream beside(kind type) { return halves(type, 2); }  // what a stage wants
stream state(kind type, int s) { return halves(type, 3 + s); }

// Codes of the same numbers, with their scales.
stream codes(trait of, int s) {
  static unsigned char numbers[most_states][n], scales[most_states][n / coded + 1];
  const bool has_sign = (of & positive) == 0;
  std::fill_n(numbers[s], n, has_sign ? 112 : 240);
  std::fill_n(scales[s], n / coded + 1, 126);
  return {numbers[s], has_sign ? kind::signed8 : kind::unsigned8, 1, scales[s]};
}

span array_of(kind type) {
  span a{};
  a.x = parameter(type);
  a.g = gradient(type);
  for (int s = 0; s < most_states; ++s) a.state[s] = state(type, s);
  a.size = a.row_size = n;
  return a;
}

// No stage is asked for, and a scalar of 1/2 asks for each.
scalars plain_step() {
  constexpr double infinite = std::numeric_limits<double>::infinity();
  scalars c{};
  c.scale = c.agree = c.oppose = c.keep = c.after = c.fade_x = c.fade_0 = c.fade_1 = 1;
  c.clip = c.high = infinite;
  c.low = -infinite;
  std::fill_n(c.rule_scalars, most_scalars, 0.5);
  return c;
}

template <class Change>
void count_step(const rule& r, kind type, const std::string& stage, const Change& change) {
  span a = array_of(type);
  scalars c = plain_step();
  change(a, c);
  const kernel update = type == kind::float64 ? r.float64 : r.float32;
  count(r.name + (" " + name(type)) + stage, n, [&] { update(&a, &a + 1, 0, n, c); });
}

void count_measure(const rule& r, kind type, const std::string& what, unsigned wanted) {
  const span a = array_of(type);
  const scalars c = plain_step();
  const measure_kernel measure = type == kind::float64 ? r.measure64 : r.measure32;
  double sums[2 * most_sums];
  count(r.name + (" " + name(type)) + what, n, [&] { measure(a, 0, n, c, wanted, sums); });
}

void count_rule(const rule& r, kind type) {
  count_step(r, type, "", [](span&, scalars&) {});
  if (r.measures) count_measure(r, type, ", own sums", measured::own);
}

// Each stage of a step alone, and all that can be measured of any rule.
void count_stages(const rule& r, kind type) {
  const auto by_scalar = [&](const char* stage, double scalars::* asked) {
    count_step(r, type, stage, [&](span&, scalars& c) { c.*asked = 0.5; });
  };
  by_scalar(", clip", &scalars::clip);
  by_scalar(", l2", &scalars::l2);
  by_scalar(", l1", &scalars::l1);
  count_step(r, type, ", l2 and l1", [](span&, scalars& c) { c.l2 = c.l1 = 0.5; });
  by_scalar(", agree", &scalars::agree);
  by_scalar(", masked", &scalars::masked);
  by_scalar(", after", &scalars::after);
  by_scalar(", threshold", &scalars::threshold);
  by_scalar(", bounds", &scalars::high);
  count_step(r, type, ", bounds as arrays",
             [&](span& a, scalars&) { a.low = a.high = beside(type); });
  count_step(r, type, ", average", [&](span& a, scalars&) { a.average = beside(type); });
  by_scalar(", zero_grad", &scalars::zero_grad);
  count_measure(r, type, ", sums", all_sums);
}

void count_storage(const rule& r, kind half) {
  const auto stored = [&](const char* which, const auto& change) {
    count_step(r, kind::float32, ", " + name(half) + which, change);
  };
  stored(" gradient", [&](span& a, scalars&) { a.g = gradient(half); });
  stored(" state", [&](span& a, scalars&) {
    for (int s = 0; s < most_states; ++s) a.state[s] = state(half, s);
  });
  stored(" parameter", [&](span& a, scalars&) { a.x = parameter(half); });
  stored(" parameter, master", [&](span& a, scalars&) {
    a.x = parameter(half);
    a.master = beside(kind::float32);
  });
  stored(" parameter, stochastic", [&](span& a, scalars& c) {
    a.x = parameter(half);
    c.stochastic = 1;
  });
}

void count_shared(const table& t) {
  double sums[2];
  for (const kind type : {kind::float32, kind::float64, kind::float16, kind::bfloat16}) {
    span a = array_of(type == kind::float64 ? type : kind::float32);
    a.g = gradient(type);
    count("add_squares " + name(type), n, [&] { t.add_squares(a, 0, n, 1, sums); });
  }
  std::vector<float> wide(n);
  for (const kind half : {kind::float16, kind::bfloat16}) {
    const stream s = gradient(half);
    const stream widened{wide.data(), kind::float32, sizeof(float)};
    count("widen " + name(half), n, [&] { kernels().convert(s, widened, n); });
    count("narrow " + name(half), n, [&] { kernels().convert(widened, s, n); });
  }
}

// What an array costs beside its elements.
void count_driver(const table& t, int rule) {
  span one = array_of(kind::float32);
  one.size = 1;
  one.width = 16;
  const std::vector<span> spans(arrays, one);
  std::vector<scalars> sets{plain_step()};
  sets[0].rule = rule;
  std::vector<double> sums(most_sums);
  count("run, an array", arrays, [&] { run(t, spans, sets); });
  count("norm, an array", arrays, [&] { norm(t, spans, sums); });
  count("measure, an array", arrays, [&] {
    measure(t, spans, sets, all_sums, sums);
    for (const span& a : spans) fold(a, sums.data(), most_sums);
  });
}

void count_all(const table& t) {
  const rule* const end = t.rules + t.size;
  for (const kind type : {kind::float32, kind::float64})
    std::for_each(t.rules, end, [&](const rule& r) { count_rule(r, type); });

  const rule& adam =
      *std::find_if(t.rules, end, [](const rule& r) { return std::string(r.name) == "adam"; });
  for (const kind type : {kind::float32, kind::float64}) count_stages(adam, type);
  for (const kind half : {kind::float16, kind::bfloat16}) count_storage(adam, half);
  count_step(adam, kind::float32, ", blockfloat8 state", [&](span& a, scalars&) {
    for (int s = 0; s < adam.states; ++s) a.state[s] = codes(adam.traits[s], s);
  });
  count_step(adam, kind::float32, ", remainder", [](span& a, scalars&) {
    a.x = parameter(kind::bfloat16);
    a.master = beside(kind::bfloat16);
    a.master.kind = kind::remainder;
    a.master.beside = a.x.data;
  });
  count_shared(t);
  count_driver(t, static_cast<int>(&adam - t.rules));
}

}  // namespace
}  // namespace schuss

int main() {
  for (const std::string& isa : schuss::found_isas())
    if (isa == "avx2") schuss::use_isa(isa);  // Valgrind 3.19 does not know AVX-512
  schuss::count_all(schuss::kernels());
  std::printf("compiler %s, %s\n", __VERSION__, schuss::kernels().isa);
}
