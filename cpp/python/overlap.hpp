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

inline void require_apart(const extent& there, const extent& more) {
  if (there.last <= more.first || more.last <= there.first) return;
  wrong_value(*more.label,
              "overlaps " + *there.label +
                  (are_tied(there, more)
                       ? ": it is the same array, which the step would move twice; register it "
                         "once, and add up its gradients"
                       : ", and the step writes to both; pass arrays that share no memory"));
}

// Sorts what is written, and says where two arrays share memory.
inline void require_apart(std::vector<extent>& written) {
  std::sort(written.begin(), written.end());
  for (std::size_t i = 1; i < written.size(); ++i) require_apart(written[i - 1], written[i]);
}

// Takes more into what is sorted and apart already.
inline void join_apart(std::vector<extent>& written, std::vector<extent>& more) {
  require_apart(more);
  for (const extent& a : more) {
    const auto after = std::lower_bound(written.begin(), written.end(), a);
    if (after != written.begin()) require_apart(*std::prev(after), a);
    if (after != written.end()) require_apart(*after, a);
  }
  const auto middle = static_cast<std::ptrdiff_t>(written.size());
  written.insert(written.end(), more.begin(), more.end());
  std::inplace_merge(written.begin(), written.begin() + middle, written.end());
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
