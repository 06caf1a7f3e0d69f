// A step measures what it has to know of whole arrays, and gets its scalars.
#include "plan.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>

namespace schuss {

namespace {

py::dict required_dict(const py::object& found) {
  if (!PyDict_Check(found.ptr())) wrong_type("scalars", type_text(found) + ", wanted a dict");
  return py::reinterpret_borrow<py::dict>(found);
}

}  // namespace

// ---- Measure

scaled_norm plan::norm_of_gradients() {
  check();
  if (!recipe_->backend.is_none()) {
    const auto [squares, exponent, finite] =
        recipe_->backend.attr("norm")(gradients_).cast<std::tuple<double, int, bool>>();
    return {squares, exponent, finite};
  }
  sums_.resize(registry_.all_chunks());
  scaled_norm found{};
  freely([&] { found = norm(kernels(), spans_, sums_); });
  return found;
}

// The first active member whose finite gradient overflows where it is scaled; their number where
// there is none. Only a scaled norm near the end of float32 makes it worth another look.
std::size_t plan::overflowing(double length) {
  if (length < std::numeric_limits<float>::max() / 2) return active_.size();
  check();
  if (!recipe_->backend.is_none()) {
    const py::object own = recipe_->backend.attr("scales_finite");
    std::size_t k = 0;
    while (k < active_.size() && own(active_[k], gradients_[k], described(k)).cast<bool>()) ++k;
    return k;
  }
  std::size_t found = 0;
  freely([&] { found = first_overflow(kernels(), spans_, sets_); });
  return found;
}

// What the factors of second moments become, for what is measured and for the step.
void plan::factor() {
  check();
  if (recipe_->backend.is_none())
    return freely([&] { schuss::factor(kernels(), spans_, sets_, factors_); });
  const py::object own = recipe_->backend.attr("factor");
  for (std::size_t k = 0; k < active_.size(); ++k) {
    if (spans_[k].row.kind == kind::none) continue;
    const scalars& c = sets_[spans_[k].set];
    auto becomes =
        own(active_[k], gradients_[k], described(k), c.share, c.floor).cast<arrays_and_values>();
    std::move(becomes.begin(), becomes.end(), std::back_inserter(computed_));
  }
}

// What a step with these scalars would do to each array, as sums.
std::vector<sums_of_array> plan::measured() {
  check();
  std::vector<sums_of_array> found(active_.size());
  if (!recipe_->backend.is_none()) {
    const py::object own = recipe_->backend.attr("measure");
    for (std::size_t k = 0; k < active_.size(); ++k)
      found[k] =
          own(active_[k], gradients_[k], described(k), recipe_->wanted).cast<sums_of_array>();
  } else {
    measurements_.resize(registry_.all_chunks() * most_sums);
    freely([&] { schuss::measure(kernels(), spans_, sets_, recipe_->wanted, measurements_); });
    for (std::size_t k = 0; k < active_.size(); ++k)
      if (spans_[k].size > 0)
        std::copy_n(measurements_.data() + most_sums * spans_[k].chunk, most_sums,
                    found[k].begin());
  }
  return found;
}

// A named tuple of Python's, which takes four times as long by its own constructor.
py::object plan::as_python(const sums_of_array& s, std::ptrdiff_t elements) const {
  const py::tuple fields = py::make_tuple(s[0], s[1], s[2], s[3], s[4], s[5], elements);
  auto* const named = reinterpret_cast<PyTypeObject*>(recipe_->sums.ptr());
  PyObject* const one = PyTuple_Type.tp_new(named, py::make_tuple(fields).ptr(), nullptr);
  if (one == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(one);
}

// The groups that step: the hyperparameters of each kind of them, and the sums of its arrays, added
// in their order; None where nothing was measured. Where none steps, they are all.
py::list plan::stepping_groups(const std::vector<sums_of_array>& sums) const {
  std::vector<std::size_t> kinds;
  std::vector<sums_of_array> totals(values_.size());
  std::vector<std::ptrdiff_t> elements(values_.size());
  const auto seen = [&](std::size_t kind) {
    const bool is_new = std::find(kinds.begin(), kinds.end(), kind) == kinds.end();
    if (is_new) kinds.push_back(kind);
    return !is_new;
  };
  for (std::size_t k = 0; k < active_.size(); ++k) {
    const std::size_t kind = kinds_[registry_.members()[active_[k]].group];
    const bool before = seen(kind);
    if (sums.empty()) continue;
    elements[kind] += spans_[k].size;
    for (std::size_t s = 0; s < most_sums; ++s)
      totals[kind][s] = before ? totals[kind][s] + sums[k][s] : sums[k][s];
  }
  if (active_.empty())
    for (const std::size_t kind : kinds_) seen(kind);
  py::list found;
  for (const std::size_t kind : kinds) {
    const py::object of_arrays =
        sums.empty() ? py::none() : as_python(totals[kind], elements[kind]);
    found.append(py::make_tuple(values_[kind], of_arrays));
  }
  return found;
}

// ---- Scalars

// The numbers that a rule remembers beside an array and beside all, by name; None where it
// remembers none.
py::object plan::memory_of(const set_of_scalars& s, const py::dict& shared) const {
  if (recipe_->remembered.empty() && recipe_->shared.empty()) return py::none();
  py::dict found;
  const std::vector<double>& own = std::get<3>(s.shared);
  for (std::size_t k = 0; k < recipe_->remembered.size() && k < own.size(); ++k)
    found[recipe_->remembered[k]] = py::float_(own[k]);
  if (PyDict_Update(found.ptr(), shared.ptr()) != 0) throw py::error_already_set();
  return found;
}

void plan::compute_scalars(double scale, const py::dict& shared) {
  for (std::size_t i = 0; i < keyed_.size(); ++i) {
    set_of_scalars& s = keyed_[i];
    const std::size_t kind = std::get<0>(s.shared);
    const py::int_ t(std::get<2>(s.shared) + 1);
    const py::object memory = memory_of(s, shared);
    if (s.steady && values_[kind].is(s.h)) {
      const py::dict rule = required_dict(call(s.f, s.own_h, t, memory));
      if (PyDict_Size(rule.ptr()) == s.entries) {
        read_rule(sets_[i], s.names, rule);
        read_factors(sets_[i], rule);
        remember(s, rule);
        sets_[i].scale = std::copysign(scale, sets_[i].scale);
        sets_[i].key = recipe_->key_of(std::get<2>(s.shared) + 1);
        continue;
      }
    }
    const py::object found = call(s.part, values_[kind], t, py::float_(scale), memory);
    const auto member = [&](Py_ssize_t place) { return PyTuple_GET_ITEM(found.ptr(), place); };
    const py::dict rule = required_dict(py::reinterpret_borrow<py::object>(member(0)));
    read_part(sets_[i], s.names, rule, py::reinterpret_borrow<py::dict>(member(1)));
    sets_[i].key = recipe_->key_of(std::get<2>(s.shared) + 1);
    read_factors(sets_[i], rule);
    remember(s, rule);
    s.steady = member(2) == Py_True;
    s.entries = PyDict_Size(rule.ptr());
    s.h = values_[kind];
    s.own_h = py::reinterpret_borrow<py::object>(member(3));
  }
  if (!std::exchange(spread_, false)) return;
  for (std::size_t k = 0; k < spans_.size() && k < set_of_.size(); ++k) spans_[k].set = set_of_[k];
}

// The numbers by which factors go, which are not of the kernel.
void plan::read_factors(scalars& c, const py::dict& rule) const {
  if (!registry_.factored()) return;
  static const auto& share = *new py::object(interned("share"));
  static const auto& floor = *new py::object(interned("floor"));
  if (PyDict_Contains(rule.ptr(), share.ptr()) == 1) c.share = number(rule[share]);
  if (PyDict_Contains(rule.ptr(), floor.ptr()) == 1) c.floor = number(rule[floor]);
}

// What a rule remembers beside the arrays of a set, as it is after the step.
void plan::remember(set_of_scalars& s, const py::dict& rule) const {
  s.next_memory = std::get<3>(s.shared);
  for (std::size_t k = 0; k < s.next_memory.size() && k < recipe_->remembered.size(); ++k) {
    PyObject* const value = PyDict_GetItemWithError(rule.ptr(), recipe_->remembered[k].ptr());
    if (value != nullptr) s.next_memory[k] = number(py::reinterpret_borrow<py::object>(value));
    if (value == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
  }
}

// From here on each array has a set of its own, with what its sums change.
void plan::adapt_scalars(const std::vector<sums_of_array>& sums) {
  static const auto& decay_rate = *new py::object(interned("decay_rate"));
  static const auto& decay = *new py::object(interned("decay"));
  static const auto& caution = *new py::object(interned("caution"));
  std::vector<scalars> own;
  for (std::size_t k = 0; k < active_.size(); ++k) {
    const set_of_scalars& s = keyed_[set_of_[k]];
    own.push_back(sets_[set_of_[k]]);
    scalars& c = own.back();
    const py::object measured = as_python(sums[k], spans_[k].size);
    if (!s.adapt.is_none()) {
      py::dict found =
          required_dict(call(s.adapt, s.own_h, py::int_(std::get<2>(s.shared) + 1), measured));
      // Another rate than the one that the weight decay went by.
      if (PyDict_Contains(found.ptr(), decay_rate.ptr()) == 1) {
        const py::object rate = found.attr("pop")(decay_rate);
        override_stages(c, s.part.attr(decay)(s.own_h, rate));
      }
      override_rule(c, s.names, found);
    }
    if (s.is_cautious) {
      c.agree = number(s.part.attr(caution)(s.own_h, measured));
      c.oppose = 0;
    }
  }
  adapted_ = std::move(own);
  spread();
}

void plan::spread() {
  spread_ = true;
  for (std::size_t k = 0; k < spans_.size(); ++k) spans_[k].set = k;
}

}  // namespace schuss
