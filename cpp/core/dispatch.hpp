// Which instruction set runs: the best one that this build has and this processor supports, unless
// one is forced.
#pragma once

#include <string>
#include <vector>

#include "kernel.hpp"

namespace schuss {

std::vector<std::string> compiled_isas();  // what this build has, best first
std::vector<std::string> found_isas();     // what this processor can run of them, best first

// The table in use. Throws std::invalid_argument where a forced set is unknown or this processor
// lacks it.
const table& kernels();

void use_isa(const std::string& name);

}  // namespace schuss
