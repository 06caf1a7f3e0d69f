// One contestant of bench/compilers.py: times kernels through the table of an instruction set, on
// one thread and without the driver.
//
// Its argument is the instruction set; without one it lists those `compiled` and those `found` in
// this processor. Answers each line of its input with a line:
//
//     case RULE SCALARS X G STATE STAGES ELEMENTS     a hash of what three steps leave
//     turn SECONDS                                    nanoseconds an element of this case
//
// X, G and STATE are kinds; X may be `remainder`, a bfloat16 with one beside it, and STATE
// `blockfloat8`. SCALARS are the rule's own, separated by commas, or `-` for 1/2 each;
// STAGES those of the stages, as in clip=1,l1=1e-4, or `-` for none. Includes nothing of the core
// but kernel.hpp and dispatch.hpp, so that other commits can be built with it.
#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dispatch.hpp"

namespace schuss {
namespace {

constexpr int steps = 16;            // from one start of all arrays, and reading of the clock, on
constexpr std::ptrdiff_t tail = 13;  // elements after those that are timed: part of the answer

std::invalid_argument unknown(const std::string& what) {
  return std::invalid_argument("unknown: " + what);
}

kind kind_of(const std::string& name) {
  if (name == "float32") return kind::float32;
  if (name == "float64") return kind::float64;
  if (name == "float16") return kind::float16;
  if (name == "bfloat16") return kind::bfloat16;
  throw unknown(name);
}

// Of a state array with a trait.
kind kind_of(const std::string& name, trait of) {
  if (name != "blockfloat8") return kind_of(name);
  if ((of & alone) != 0) return kind::float32;
  return (of & positive) != 0 ? kind::unsigned8 : kind::signed8;
}

std::ptrdiff_t width_of(kind type) {
  if (type == kind::float32) return 4;
  if (type == kind::float64) return 8;
  return type == kind::float16 || type == kind::bfloat16 || type == kind::remainder ? 2 : 1;
}

const rule& rule_of(const std::string& name) {
  const table& t = kernels();
  const rule* const found =
      std::find_if(t.rules, t.rules + t.size, [&](const rule& r) { return name == r.name; });
  if (found == t.rules + t.size) throw unknown(name);
  return *found;
}

std::vector<std::string> separated(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream from(text == "-" ? "" : text);
  for (std::string part; std::getline(from, part, ',');) parts.push_back(part);
  return parts;
}

constexpr double infinite = std::numeric_limits<double>::infinity();

scalars scalars_of(const std::string& own, const std::string& stages) {
  const std::vector<std::string> numbers = separated(own);
  if (numbers.size() > most_scalars) throw unknown(own);
  scalars c{};
  std::fill_n(c.rule_scalars, most_scalars, 0.5);
  std::transform(numbers.begin(), numbers.end(), c.rule_scalars,
                 [](const std::string& number) { return std::stod(number); });
#define SCHUSS_NEUTRAL(stage, neutral) c.stage = neutral;
  SCHUSS_STAGES(SCHUSS_NEUTRAL)
  for (const std::string& part : separated(stages)) {
    const std::size_t equals = part.find('=');
    const std::string name = part.substr(0, equals);
    double* stage = nullptr;
#define SCHUSS_FIND(member, neutral) \
  if (name == #member) stage = &c.member;
    SCHUSS_STAGES(SCHUSS_FIND)
    if (stage == nullptr || equals == std::string::npos) throw unknown(part);
    *stage = std::stod(part.substr(equals + 1));
  }
  return c;
}

// Stores a number in an element of a kind; in 16 bits cut off towards 0, and 0 where float16 has
// no normal number for it; in 8 one from 1/2 to 1, with the scale that `none` gives.
void put(kind type, double number, void* to) {
  const float nearest = static_cast<float>(number);
  std::uint32_t word;
  std::memcpy(&word, &nearest, sizeof word);
  const std::uint32_t sign = word >> 16 & 0x8000, size = word & 0x7fffffff;
  const std::uint32_t half = sign | (size < 0x38800000 ? 0 : (size - 0x38000000) >> 13);
  const auto bits = static_cast<std::uint16_t>(type == kind::float16 ? half : word >> 16);
  const std::uint8_t scale = 127, fraction = static_cast<std::uint8_t>(word >> 19 & 15);
  const auto code = static_cast<std::uint8_t>((type == kind::signed8 ? 96 : 224) + fraction);
  if (width_of(type) == 1)
    std::memcpy(to, type == kind::none ? &scale : &code, 1);
  else if (type == kind::float64)
    std::memcpy(to, &number, sizeof number);
  else if (type == kind::float32)
    std::memcpy(to, &nearest, sizeof nearest);
  else
    std::memcpy(to, &bits, sizeof bits);
}

// Arrays in one piece of memory, each at another place of its page, which is the same in every
// contestant: equal places deceive the way predictor of AMD's caches.
class arrays {
 public:
  arrays(std::ptrdiff_t most, std::ptrdiff_t elements)
      : size(elements), memory(static_cast<std::size_t>(most * bytes(8)) + page) {
    void* first = memory.data();
    std::size_t room = memory.size();
    begin = next = static_cast<unsigned char*>(std::align(page, 1, first, room));
  }

  // Numbers from 1/2 to 3/2, far from subnormal ones, which would be another benchmark; with signs
  // by chance where there are to be any.
  stream add(kind type, bool has_signs) {
    const stream s{next, type, width_of(type)};
    for (std::ptrdiff_t i = 0; i < size; ++i) {
      const double number = 0.5 + static_cast<double>(random()) * 0x1p-32;
      put(type, has_signs && random() % 2 == 1 ? -number : number, next + i * s.width);
    }
    next += bytes(s.width);
    start.assign(begin, next);
    return s;
  }

  void restart() { std::copy(start.begin(), start.end(), begin); }

  // FNV-1a of all bytes, those between the arrays, too.
  std::uint64_t hash() const {
    return std::accumulate(begin, next, std::uint64_t{0xcbf29ce484222325},
                           [](auto h, unsigned char byte) { return (h ^ byte) * 0x100000001b3; });
  }

 private:
  static constexpr std::size_t page = 4096;

  // From one array to the next.
  std::ptrdiff_t bytes(std::ptrdiff_t width) const {
    constexpr auto whole = static_cast<std::ptrdiff_t>(page);
    return (size * width / whole + 1) * whole + 576;
  }

  std::ptrdiff_t size;
  std::vector<unsigned char> memory, start;
  unsigned char *begin, *next;
  std::mt19937 random{0};
};

class contestant {
 public:
  // The words behind `case`.
  explicit contestant(std::istream& words) {
    std::string name, own, x, g, state, stages;
    if (!(words >> name >> own >> x >> g >> state >> stages >> elements))
      throw unknown("a case that ends too soon");
    const rule& r = rule_of(name);
    const bool remains = x == "remainder";
    if (remains) x = "bfloat16";
    update = kind_of(x) == kind::float64 ? r.float64 : r.float32;
    c = scalars_of(own, stages);
    held.emplace(2 * most_states + 5, elements + tail);
    span& a = spans[0];
    a.x = held->add(kind_of(x), false);
    a.g = held->add(kind_of(g), true);
    for (int s = 0; s < r.states; ++s) {
      a.state[s] = held->add(kind_of(state, r.traits[s]), false);
      if (a.state[s].width == 1) a.state[s].beside = held->add(kind::none, false).data;
    }
    if (remains) {
      a.master = held->add(kind::remainder, false);
      a.master.beside = a.x.data;
    }
    if (c.average != 0)
      a.average = held->add(update == r.float64 ? kind::float64 : kind::float32, false);
    spans[1] = a;
    spans[1].g = held->add(kind_of(g), true);
  }

  std::uint64_t answer() {
    held->restart();
    step(3, elements + tail);
    return held->hash();
  }

  // The median of as many times as fit into a turn.
  double turn(double seconds) {
    using clock = std::chrono::steady_clock;
    std::vector<double> times;
    const auto end = clock::now() + std::chrono::duration<double>(seconds);
    do {
      held->restart();
      const auto start = clock::now();
      step(steps, elements);
      const std::chrono::duration<double, std::nano> taken = clock::now() - start;
      times.push_back(taken.count() / static_cast<double>(steps * elements));
    } while (clock::now() < end);
    const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
    std::nth_element(times.begin(), middle, times.end());
    return *middle;
  }

 private:
  // Signs of the gradient turn from one step to the next, by chance: no branch can be foreseen.
  void step(int count, std::ptrdiff_t n) {
    for (int i = 0; i < count; ++i) {
      span& a = spans[i % 2];
      a.size = n;
      update(&a, &a + 1, 0, n, c);
    }
  }

  kernel update;
  scalars c;
  std::ptrdiff_t elements;
  std::optional<arrays> held;
  span spans[2] = {};
};

void list(const char* what, const std::vector<std::string>& isas) {
  std::printf("%s", what);
  for (const std::string& isa : isas) std::printf(" %s", isa.c_str());
  std::printf("\n");
}

void answer_all(std::istream& lines) {
  std::optional<contestant> present;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string command;
    double seconds;
    words >> command;
    if (command == "case")
      std::printf("%016" PRIx64 "\n", present.emplace(words).answer());
    else if (command == "turn" && words >> seconds && present)
      std::printf("%.6f\n", present->turn(seconds));
    else
      throw unknown(line);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace schuss

int main(int argc, char** argv) {
  try {
    if (argc == 1) {
      schuss::list("compiled", schuss::compiled_isas());
      schuss::list("found", schuss::found_isas());
      return 0;
    }
    if (argc != 2) throw std::invalid_argument("wants the name of an instruction set");
    schuss::use_isa(argv[1]);
    schuss::answer_all(std::cin);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
