// The tests of the core, without Python: `core_tests GOLDEN [--found | --text | SET ...]`.
//
// GOLDEN is tests/core/golden.txt, whose bits each of the SETs of instructions has to leave, or all
// that this processor has; `--text` writes the file as the best of them leaves it, `--found` says
// which they are.
#include <atomic>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "dispatch.hpp"
#include "threads.hpp"

namespace schuss {
namespace {

std::atomic<int> failures{0};

int run_all(const std::string& golden, const std::vector<std::string>& sets) {
  test_partition();
  test_dispatch();
  test_crew();
  for (const std::string& set : sets) {
    const int before = failures;
    use_isa(set);
    test_golden(golden);
    std::printf("%s: %s\n", set.c_str(), failures == before ? "the bits of golden.txt" : "WRONG");
  }
  return failures == 0 ? 0 : 1;
}

int work_on(const std::vector<std::string>& arguments) {
  if (arguments.empty()) throw std::invalid_argument("wants tests/core/golden.txt");
  const std::vector<std::string> rest(arguments.begin() + 1, arguments.end());
  if (rest.empty()) return run_all(arguments[0], found_isas());
  if (rest[0] == "--text") {
    std::printf("%s", golden_text(arguments[0]).c_str());
  } else if (rest[0] == "--found") {
    for (const std::string& set : found_isas()) std::printf("%s\n", set.c_str());
  } else {
    return run_all(arguments[0], rest);
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace

bool check(bool holds, const char* file, int line, const std::string& what) {
  constexpr int shown = 50;
  if (!holds && ++failures <= shown) std::printf("%s:%d: %s\n", file, line, what.c_str());
  return holds;
}

}  // namespace schuss

int main(int argc, char** argv) {
  try {
    return schuss::work_on({argv + 1, argv + argc});
  } catch (const std::exception& e) {
    std::printf("%s\n", e.what());
    return 1;
  }
}
