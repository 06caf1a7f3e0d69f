// What the cases of golden.txt are made of.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "check.hpp"
#include "kernel.hpp"
#include "numbers.hpp"
#include "threads.hpp"

namespace schuss {

const std::vector<int> teams = {1, 2, 5};  // of threads, with each of which the driver steps

// What `work` adds to a hash, which is the same with any number of threads.
template <class Work> word with_teams(const std::string& name, const Work& work) {
  word first = 0;
  for (const int team : teams) {
    set_threads_here(team);
    digest found;
    work(found);
    if (team == teams.front()) first = found.sum();
    CHECK_SAYING(found.sum() == first, name + ": other bits by " + std::to_string(team));
  }
  set_threads_here(0);
  return first;
}

// Names with their numbers, of each step one, or one for all.
using assignments = std::vector<std::pair<std::string, std::vector<double>>>;

// A line of golden.txt that begins with a rule: its scalars, and behind a bar the stages that
// belong to it.
struct recipe {
  int number;
  const rule* of;
  assignments scalars, stages;

  surroundings around(const assignments& more = {}) const;

  // The two sets of a step, which are alike.
  std::vector<schuss::scalars> sets(const surroundings& with, int step) const;
};

// The cases that no rule owns, with their hashes.
std::vector<std::pair<std::string, word>> shared_cases(const std::map<std::string, recipe>& rules);

}  // namespace schuss
