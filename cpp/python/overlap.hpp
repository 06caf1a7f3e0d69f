// Which memory a step writes to, and who else touches it.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "contract.hpp"

namespace schuss {

// The memory of one array.
struct extent {
  const char *first, *last;
  const std::string* label;
  bool operator<(const extent& other) const { return first < other.first; }
};

inline extent extent_of(py::handle a, const std::string& label) {
  const char* const first = fields(a)->data;
  return {first, first + py::reinterpret_borrow<py::array>(a).nbytes(), &label};
}

// One parameter twice, and not two of an optimizer's own arrays.
inline bool are_tied(const extent& a, const extent& b) {
  const auto is_parameter = [](const extent& e) { return e.label->rfind("params", 0) == 0; };
  return a.first == b.first && a.last == b.last && is_parameter(a) && is_parameter(b);
}

// Sorts what is written, and says where two arrays share memory.
inline void require_apart(std::vector<extent>& written) {
  std::sort(written.begin(), written.end());
  for (std::size_t i = 1; i < written.size(); ++i)
    if (written[i - 1].last > written[i].first)
      wrong_value(*written[i].label,
                  "overlaps " + *written[i - 1].label +
                      (are_tied(written[i - 1], written[i])
                           ? ": it is the same array, which the step would move twice; register "
                             "it once, and add up its gradients"
                           : ", and the step writes to both; pass arrays that share no memory"));
}

// An array that is only read may overlap another such one, but nothing of what is written, which is
// sorted.
inline void require_apart_from(const std::vector<extent>& written, const extent& a) {
  const auto after =
      std::lower_bound(written.begin(), written.end(), extent{a.last, a.last, nullptr});
  if (a.first < a.last && after != written.begin() && std::prev(after)->last > a.first)
    wrong_value(*a.label, "overlaps " + *std::prev(after)->label +
                              ", which the step writes to; pass a gradient with memory of its own");
}

}  // namespace schuss
