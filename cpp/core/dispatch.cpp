// The one place where the processor is asked what it has. What some processors of a set have beyond
// it is a set of its own here, so that it is shown, forced and tested as every other.
#include "dispatch.hpp"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace schuss {

// CMakeLists.txt gives the sets that it compiles, in order of preference, as SCHUSS_ISAS(isa).
#define SCHUSS_DECLARE(isa) extern const table schuss_kernels_##isa;
SCHUSS_ISAS(SCHUSS_DECLARE)

namespace {

struct candidate {
  const table* kernels;
  bool (*supported)();
};

// The compiler's own test reads CPUID, and XGETBV for whether the system saves the wider registers.
// clang's, up to 16 at least, doesn't know F16C, which wants the same registers as AVX2.
#if defined(__x86_64__)
bool f16c_in_cpuid() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
[[maybe_unused]] bool sse2_supported() { return true; }
[[maybe_unused]] bool avx2_supported() {
  return __builtin_cpu_supports("avx2") != 0 && f16c_in_cpuid();
}
[[maybe_unused]] bool avx512_supported() {
  return avx2_supported() && __builtin_cpu_supports("avx512f") != 0 &&
         __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0;
}
[[maybe_unused]] bool avx512bf16_supported() {
  return avx512_supported() && __builtin_cpu_supports("avx512bf16") != 0;
}
// The same instructions, with the divider's quotient (CMakeLists.txt).
[[maybe_unused]] bool avx512zen_supported() {
  return avx512bf16_supported() && __builtin_cpu_is("amd") != 0;
}
#elif defined(__aarch64__)
[[maybe_unused]] bool neon_supported() { return true; }
#else
[[maybe_unused]] bool baseline_supported() { return true; }
#endif

constexpr candidate candidates[] = {
#define SCHUSS_CANDIDATE(isa) {&schuss_kernels_##isa, isa##_supported},
    SCHUSS_ISAS(SCHUSS_CANDIDATE)};

const table* best() {
  for (const candidate& c : candidates)
    if (c.supported()) return c.kernels;
  throw std::runtime_error("this build has no instruction set that this processor supports");
}

const table*& chosen() {
  static const table* kernels = best();
  return kernels;
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const candidate& c : candidates) names.emplace_back(c.kernels->isa);
  return names;
}

std::vector<std::string> found_isas() {
  std::vector<std::string> names;
  for (const candidate& c : candidates)
    if (c.supported()) names.emplace_back(c.kernels->isa);
  return names;
}

const table& kernels() { return *chosen(); }

void use_isa(const std::string& name) {
  for (const candidate& c : candidates) {
    if (name != c.kernels->isa) continue;
    if (!c.supported())
      throw std::invalid_argument("this processor lacks '" + name + "'; it has " +
                                  listed(found_isas()));
    chosen() = c.kernels;
    return;
  }
  throw std::invalid_argument("unknown instruction set '" + name + "'; this build has " +
                              listed(compiled_isas()));
}

}  // namespace schuss
