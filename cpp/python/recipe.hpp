// How a step's numbers are had, as Python says: read once, followed until an option is set.
#pragma once

#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "../core/dispatch.hpp"
#include "interpreter.hpp"
#include "registry.hpp"

namespace schuss {

inline py::object interned(const char* text) {
  return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(text));
}

// The stages by name, in the order of a step, each with the value that changes nothing.
struct stage {
  const char* name;
  double scalars::* place;
  double idle;
};
const std::vector<stage>& stages();
scalars idle_scalars(int rule);

// One group and the settings that it had when they were last read: a tuple of Python's that is
// replaced as a whole when something is set. Settings of the same form differ in numbers alone.
struct group_settings {
  py::object group, settings, form, values, at;
  py::object before;  // the values that a step's own rate stood in for, and that rate
  double rate = 0;
  std::size_t kind = 0;  // groups with the same settings are of one kind
};

// How the scalars of the arrays that share a key are had. part(h, t, scale, memory) returns a dict
// of the kernel's, one of the stages that are not idle, whether f(h, t, memory) is enough while h
// stays the same, and that h. Where a sweep over the arrays comes first, adapt(h, t, sums) is a
// dict of what an array's sums change, and part.caution(h, sums) the share of the cautious.
struct set_of_scalars {
  key shared;
  py::object part, f, adapt, names;  // what Python gives once
  bool is_cautious = false;
  std::string refuses_rows;  // why, if it does
  py::object h, own_h;       // the hyperparameters, and what the part made of them
  bool steady = false;
  Py_ssize_t entries = 0;            // of the dict that f returned when all was computed
  std::int64_t computed_after = -1;  // the count and the memory that the scalars are of
  std::vector<double> computed_from;
  std::vector<double> next_memory;  // what it becomes by the step
};

struct recipe {
  std::vector<group_settings> groups;
  py::object part;     // (number of a group, decays): what computes the scalars of its arrays
  py::object scale;    // 1/grad_scale as a float, or a LossScale, whose float it is
  py::object told;     // of a LossScale: whether a step was done
  py::object follow;   // (groups, shared, t, loss): what `shared` becomes; or None
  py::object undone;   // what is left of a step whose gradients are not finite
  py::object backend;  // None: the kernels; or what has norm, measure and run in NumPy
  py::object direct;   // from gradients to directions and what other arrays become, or None
  py::object convert;  // what makes a gradient of another type or order fit, or None
  py::object sums;     // the class of what is measured
  py::object whole;    // the arrays of which these are shares, held by several processes; or None
  std::vector<py::object> remembered, shared;  // names of the numbers beside arrays, beside all
  double limit;                                // of the norm
  std::string per;                             // of which that is: all, array or row
  bool measures_norm, propagates, reads_loss, totals, adapts, zero_grad;
  bool counts_rows;   // each its steps, and not those of the array before its last one
  unsigned wanted;    // sums of the arrays that a step has to know first
  std::uint32_t key;  // of the seed of the dither
  std::vector<std::ptrdiff_t> sizes;  // of the whole arrays

  // That of an array's step t: from step to step they differ by the golden angle, so that what an
  // element is rounded by balances within few steps. Up by the golden ratio, which is down by its
  // angle, a second moment that falls in 8 bits goes 1.5 times as far astray.
  double key_of(std::int64_t t) const {
    constexpr std::uint32_t golden = 0x61c88647;
    return static_cast<std::uint32_t>(key + static_cast<std::uint32_t>(t) * golden);
  }

  recipe(const py::object& from, const py::object& settings_name);
};

// A number of Python's, which is held while its own code makes a float of it; throws where it is
// none.
double number(const py::object& value);

// What gradients of this norm are multiplied by, as in PyTorch: no more than 1, NaN for NaN.
inline double share_within(double limit, double length) {
  const double share = limit / (length + 1e-6);
  return share > 1.0 ? 1.0 : share;
}

// Reads what a part has returned into a set: by name, the rest idle.
void read_part(scalars& c, const py::object& names, const py::dict& rule, const py::dict& around);
void read_rule(scalars& c, const py::object& names, const py::dict& rule);
void override_rule(scalars& c, const py::object& names, const py::handle& values);
void override_stages(scalars& c, const py::handle& values);

}  // namespace schuss
