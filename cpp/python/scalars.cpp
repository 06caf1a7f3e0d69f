// A step measures what it has to know of whole arrays, and gets its scalars.
#include "plan.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <map>
#include <numeric>

namespace schuss {

namespace {

std::vector<scaled_norm> as_norms(const py::object& found) {
  std::vector<scaled_norm> norms;
  for (const auto& [squares, exponent, finite] :
       found.cast<std::vector<std::tuple<double, int, bool>>>())
    norms.push_back({squares, exponent, finite});
  return norms;
}

py::dict required_dict(const py::object& found) {
  if (!PyDict_Check(found.ptr())) wrong_type("scalars", type_text(found) + ", wanted a dict");
  return py::reinterpret_borrow<py::dict>(found);
}

}  // namespace

// ---- Measure

scaled_norm plan::norm_of_gradients() {
  check();
  if (!recipe_->whole.is_none()) return norm_of_whole();
  if (!recipe_->backend.is_none()) return as_norms(backend().attr("norm")("all")).at(0);
  sums_.resize(static_cast<std::size_t>(chunks_));
  scaled_norm found{};
  freely([&] { found = norm(kernels(), spans_, sums_); });
  return found;
}

// That of gradients of which others have the rest.
scaled_norm plan::norm_of_whole() {
  sums_.resize(static_cast<std::size_t>(chunks_));
  const auto at = [&](int exponent) {
    bool finite = true;
    freely([&] { finite = sum_squares(exponent, kernels(), spans_, sums_); });
    const auto [squares, all_finite] =
        recipe_->whole.attr("squares")(as_table(sums_, 1), active_, finite)
            .cast<std::pair<double, bool>>();
    return scaled_norm{squares, exponent, all_finite};
  };
  const scaled_norm found = at(0);
  const int exponent = better_exponent(spans_, found.squares, found.finite);
  return exponent == 0 ? found : at(exponent);
}

// Those of each array, or of each of its rows: how many there are of an array is its count.
std::vector<scaled_norm> plan::norms_of_each(std::vector<std::size_t>& counts) {
  check();
  const bool by_row = recipe_->per == "row";
  std::vector<span> all = spans_;
  std::ptrdiff_t chunks_of_all = 0;
  std::size_t total = 0;
  for (std::size_t k = 0; k < all.size(); ++k) {
    const member& m = registry_.members()[active_[k]];
    if (by_row && m.shape.size() > 1 && (fields(m.x)->flags & c_order) == 0)
      wrong_value(m.labels[0],
                  "in Fortran order, in which no row lies side by side, but "
                  "clip_norm_per is \"row\"");
    if (by_row && all[k].rows == nullptr) all[k].row_size = rows_of(m).size;
    all[k].chunk = chunks_of_all;
    chunks_of_all += chunks(all[k]);
    const std::ptrdiff_t rows = all[k].row_size == 0 ? 0 : all[k].size / all[k].row_size;
    counts.push_back(by_row ? static_cast<std::size_t>(rows) : 1);
    total += counts.back();
  }
  if (!recipe_->backend.is_none()) return as_norms(backend().attr("norm")(recipe_->per));
  std::vector<scaled_norm> found(total);
  sums_.resize(static_cast<std::size_t>(chunks_of_all));
  freely([&] { norms(kernels(), all, by_row, sums_, found); });
  return found;
}

// Measures the norm of the gradients, and clips by it: the scale of all, or of each array or row.
// False where one is not finite and that isn't to go on.
bool plan::clip(double& scale, double& length) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  const double limit = recipe_->limit;
  const bool each = limit < inf && recipe_->per != "all";
  norm_ = each ? clip_each(scale) : norm_of_gradients();
  length = std::ldexp(std::sqrt(norm_.squares) * scale, norm_.exponent);
  if (!arriving_) grad_norm_ = stepped_norm_ = length;
  if (!norm_.finite && !recipe_->propagates) return false;
  if (each || arriving_ || limit == inf) return true;
  // Where there is a limit the norm of finite gradients may be infinite, though limit/length is a
  // number.
  if (norm_.finite && length == inf) {
    scale = std::ldexp(limit / std::sqrt(norm_.squares), -norm_.exponent);
    length = limit;
  } else if (const double share = share_within(limit, length); share != 1.0) {
    scale *= share;
    length *= share;
  }
  return true;
}

scaled_norm plan::clip_each(double scale) {
  std::vector<std::size_t> counts;
  const std::vector<scaled_norm> norms = norms_of_each(counts);
  if (norms.size() != std::accumulate(counts.begin(), counts.end(), std::size_t{0}))
    throw py::value_error("norm: one for each");
  const auto factor = [&](const scaled_norm& own) {
    double length = std::sqrt(own.squares) * scale;
    if (own.exponent != 0) length = std::ldexp(length, own.exponent);
    if (own.finite && length == std::numeric_limits<double>::infinity())
      return std::ldexp(recipe_->limit / std::sqrt(own.squares), -own.exponent) / scale;
    return share_within(recipe_->limit, length);
  };
  auto next = norms.begin();
  if (recipe_->per == "array") {
    scales_.clear();
    for (const scaled_norm& own : norms) scales_.push_back(scale * factor(own));
    return added(norms);
  }
  row_factors_.assign(active_.size(), {});
  for (std::size_t k = 0; k < active_.size(); ++k)
    for (std::size_t row = 0; row < counts[k]; ++row) row_factors_[k].push_back(factor(*next++));
  filled_ = taken_ = false;  // which have gradients without these
  return added(norms);
}

// The first active member whose finite gradient overflows where it is scaled; their number where
// there is none. Only a scaled norm near the end of float32 makes it worth another look.
std::size_t plan::overflowing(double length) {
  if (length < std::numeric_limits<float>::max() / 2) return active_.size();
  const std::size_t found = first_overflow();
  return recipe_->whole.is_none() ? found : recipe_->whole.attr("first")(found).cast<std::size_t>();
}

std::size_t plan::first_overflow() {
  check();
  if (!recipe_->backend.is_none()) {
    const py::object own = backend().attr("scales_finite");
    std::size_t k = 0;
    while (k < active_.size() && own(active_[k], described(spans_[k].set)).cast<bool>()) ++k;
    return k;
  }
  std::size_t found = 0;
  freely([&] { found = schuss::first_overflow(kernels(), spans_, in_use()); });
  return found;
}

// What the factors of second moments become, for what is measured and for the step.
void plan::factor() {
  check();
  if (recipe_->backend.is_none())
    return freely([&] { schuss::factor(kernels(), spans_, in_use(), factors_); });
  const py::object own = backend().attr("factor");
  for (std::size_t k = 0; k < active_.size(); ++k) {
    if (spans_[k].row.kind == kind::none) continue;
    const scalars& c = in_use()[spans_[k].set];
    auto becomes =
        own(active_[k], described(spans_[k].set), c.share, c.floor).cast<arrays_and_values>();
    std::move(becomes.begin(), becomes.end(), std::back_inserter(computed_));
  }
}

// What a step with these scalars would do to each array, as sums.
std::vector<sums_of_array> plan::measured() {
  check();
  std::vector<sums_of_array> found(active_.size());
  if (!recipe_->backend.is_none()) {
    const py::object own = backend().attr("measure");
    for (std::size_t k = 0; k < active_.size(); ++k)
      found[k] = own(active_[k], described(spans_[k].set), recipe_->wanted).cast<sums_of_array>();
  } else {
    measurements_.resize(static_cast<std::size_t>(chunks_) * most_sums);
    freely([&] { schuss::measure(kernels(), spans_, in_use(), recipe_->wanted, measurements_); });
    if (!recipe_->whole.is_none()) return of_whole<sums_of_array>(measurements_);
    for (std::size_t k = 0; k < active_.size(); ++k) {
      if (spans_[k].size == 0) continue;
      double* const own = measurements_.data() + most_sums * spans_[k].chunk;
      fold(spans_[k], own, most_sums);
      std::copy_n(own, most_sums, found[k].begin());
    }
  }
  return found;
}

// Of the array that an active member is, or is a share of.
std::ptrdiff_t plan::elements(std::size_t k) const {
  return recipe_->sizes.empty() ? spans_[k].size : recipe_->sizes.at(active_[k]);
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
  std::vector<std::ptrdiff_t> sizes(values_.size());
  const auto seen = [&](std::size_t kind) {
    const bool is_new = std::find(kinds.begin(), kinds.end(), kind) == kinds.end();
    if (is_new) kinds.push_back(kind);
    return !is_new;
  };
  for (std::size_t k = 0; k < active_.size(); ++k) {
    const std::size_t kind = kinds_[registry_.members()[active_[k]].group];
    const bool before = seen(kind);
    if (sums.empty()) continue;
    sizes[kind] += elements(k);
    for (std::size_t s = 0; s < most_sums; ++s)
      totals[kind][s] = before ? totals[kind][s] + sums[k][s] : sums[k][s];
  }
  if (active_.empty())
    for (const std::size_t kind : kinds_) seen(kind);
  py::list found;
  for (const std::size_t kind : kinds) {
    const py::object of_arrays = sums.empty() ? py::none() : as_python(totals[kind], sizes[kind]);
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
  adapted_.clear();
  sets_.resize(keyed_.size());  // without those of rows
  for (std::size_t i = 0; i < keyed_.size(); ++i) {
    set_of_scalars& s = keyed_[i];
    const std::size_t kind = std::get<0>(s.shared);
    const std::int64_t after = std::get<2>(s.shared);
    const std::vector<double>& remembered = std::get<3>(s.shared);
    // Known from the step before, of another array after as many steps: see alone.
    if (s.computed_after == after && values_[kind].is(s.h) && s.computed_from == remembered &&
        PyDict_Size(shared.ptr()) == 0) {
      sets_[i].scale = std::copysign(scale, sets_[i].scale);
      continue;
    }
    s.computed_after = -1;
    const py::int_ t(after + 1);
    const py::object memory = memory_of(s, shared);
    if (s.steady && values_[kind].is(s.h)) {
      const py::dict rule = required_dict(call(s.f, s.own_h, t, memory));
      if (PyDict_Size(rule.ptr()) == s.entries) {
        read_rule(sets_[i], s.names, rule);
        read_factors(sets_[i], rule);
        remember(s, rule);
        sets_[i].scale = std::copysign(scale, sets_[i].scale);
        sets_[i].key = recipe_->key_of(after + 1);
        s.computed_after = after;
        s.computed_from = remembered;
        continue;
      }
    }
    const py::object found = call(s.part, values_[kind], t, py::float_(scale), memory);
    const auto member = [&](Py_ssize_t place) { return PyTuple_GET_ITEM(found.ptr(), place); };
    const py::dict rule = required_dict(py::reinterpret_borrow<py::object>(member(0)));
    read_part(sets_[i], s.names, rule, py::reinterpret_borrow<py::dict>(member(1)));
    sets_[i].key = recipe_->key_of(after + 1);
    read_factors(sets_[i], rule);
    remember(s, rule);
    s.steady = member(2) == Py_True;
    s.entries = PyDict_Size(rule.ptr());
    s.h = values_[kind];
    s.own_h = py::reinterpret_borrow<py::object>(member(3));
    s.computed_after = after;
    s.computed_from = remembered;
  }
  if (std::exchange(spread_, false))
    for (std::size_t k = 0; k < spans_.size() && k < set_of_.size(); ++k)
      spans_[k].set = set_of_[k];
  spread_scales();
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
    own.push_back(in_use()[spans_[k].set]);
    scalars& c = own.back();
    const py::object measured = as_python(sums[k], elements(k));
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

// Where each array has a scale of its own.
void plan::spread_scales() {
  if (scales_.empty()) return;
  for (std::size_t k = 0; k < active_.size(); ++k) {
    adapted_.push_back(sets_[set_of_[k]]);
    adapted_.back().scale = std::copysign(scales_[k], adapted_.back().scale);
  }
  spread();
}

// The scalars of a row of active member k, by what is counted of it.
scalars plan::scalars_of_row(std::size_t k, std::int64_t value) {
  const set_of_scalars& s = keyed_[set_of_[k]];
  const member& m = registry_.members()[active_[k]];
  scalars c = in_use()[spans_[k].set];
  const auto wrong = [&] {
    const std::string what = recipe_->counts_rows ? "steps" : "the array's steps at its last one";
    wrong_value(m.labels.back(), std::to_string(value) + ", no number of " + what);
  };
  if (recipe_->counts_rows) {
    constexpr std::int64_t most = std::int64_t{1} << 62;
    if (value < 0 || value > most) wrong();
    const std::uint32_t dither = static_cast<std::uint32_t>(c.key);
    const double scale = std::fabs(c.scale);
    const py::object found = call(s.part, values_[std::get<0>(s.shared)], py::int_(value + 1),
                                  py::float_(scale), py::none());
    const auto part = [&](Py_ssize_t place) {
      return py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(found.ptr(), place));
    };
    read_part(c, s.names, required_dict(part(0)), py::reinterpret_borrow<py::dict>(part(1)));
    c.key = dither;
    return c;
  }
  if (value < 0 || value > m.count) wrong();
  if (value == m.count) return c;
  static const auto& fade = *new py::object(interned("fade"));
  override_stages(c, required_dict(call(s.part.attr(fade), s.own_h, py::int_(m.count - value))));
  return c;
}

// Where rows have sets of their own: one for each number that is counted of some.
void plan::spread_rows() {
  if (!registry_.counts_rows()) return;
  check();
  std::vector<std::vector<std::size_t>> all_sets(row_steps_.size());
  for (std::size_t k = 0; k < all_sets.size() && k < row_steps_.size(); ++k) {
    if (row_steps_[k] == nullptr) continue;
    std::map<std::int64_t, std::size_t> numbers;
    std::vector<std::size_t> sets;
    std::vector<std::int64_t> values;  // before Python runs, which may take them away
    for (const std::ptrdiff_t row : sources_[k].numbers) values.push_back(row_steps_[k][row]);
    for (const std::int64_t value : values) {
      auto known = numbers.find(value);
      if (known == numbers.end()) {
        const scalars c = scalars_of_row(k, value);
        known = numbers.emplace(value, in_use().size()).first;
        in_use().push_back(c);
      }
      sets.push_back(known->second);
    }
    all_sets[k].swap(sets);
  }
  check();
  for (std::size_t k = 0; k < all_sets.size() && k < row_steps_.size(); ++k) {
    if (row_steps_[k] == nullptr) continue;
    sources_[k].spread(std::move(all_sets[k]), spans_[k]);
  }
}

// Python may have changed what a row's set was found by, or the rows themselves.
void plan::require_rows_as_spread() const {
  for (std::size_t k = 0; k < row_steps_.size(); ++k)
    if (row_steps_[k] != nullptr && sources_[k].sets.size() != sources_[k].numbers.size())
      throw py::value_error("grads: changed while they were looked over");
}

}  // namespace schuss
