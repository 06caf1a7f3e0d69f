// Which set of instructions runs.
#include "dispatch.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"

namespace schuss {
namespace {

bool refused(const std::string& name) {
  try {
    use_isa(name);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace

void test_dispatch() {
  const std::vector<std::string> compiled = compiled_isas(), found = found_isas();
  CHECK(!found.empty());
  CHECK(kernels().isa == found.front());
  for (const std::string& set : compiled) {
    if (std::find(found.begin(), found.end(), set) == found.end()) {
      CHECK(refused(set));
    } else {
      use_isa(set);
      CHECK(kernels().isa == set);
    }
  }
  use_isa(found.back());
  CHECK(refused("avx1024"));
  CHECK(refused(""));
  CHECK(kernels().isa == found.back());
  use_isa(found.front());
}

}  // namespace schuss
