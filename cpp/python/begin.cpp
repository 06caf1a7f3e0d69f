// A step begins: settings, schedules, gradients in order, one set of scalars for each key.
#include "plan.hpp"

#include <algorithm>
#include <numeric>

namespace schuss {

namespace {

// Members of Python's class Settings, a tuple.
enum settings_field : Py_ssize_t { values_field = 1, scheduled_field = 2, form_field = 5 };

PyObject* field(const py::object& settings, settings_field f) {
  return PyTuple_GET_ITEM(settings.ptr(), static_cast<Py_ssize_t>(f));
}

// A gradient that is a number, for a parameter of no dimension.
py::object as_array(const member& m, const py::object& g) {
  static const auto& numpy = *new py::module_(py::module_::import("numpy"));
  const bool generic = py::isinstance(g, numpy.attr("generic"));
  const bool plain = PyFloat_Check(g.ptr()) != 0 || PyLong_CheckExact(g.ptr()) != 0;
  if (!m.shape.empty() || !(generic || plain)) return g;
  return generic ? numpy.attr("asarray")(g) : numpy.attr("asarray")(g, dtype_of(m.x));
}

}  // namespace

void plan::follow_recipe() {
  static const auto& settings_name = *new py::object(interned("settings"));
  stale_ = false;  // before Python runs, which may set something
  auto next = std::make_unique<recipe>(call(make_), settings_name);
  recipe_.swap(next);
  drop_from(structures_, 1);  // what is a structure depends on an option, too
  kinds_.assign(recipe_->groups.size(), 0);
  keyed_right_ = false;
  filled_ = false;
}

// Reads the settings of all groups; false where one is of another form than the recipe is for.
bool plan::read_settings() {
  static const auto& settings_name = *new py::object(interned("settings"));
  bool others = false;
  for (group_settings& own : recipe_->groups) {
    py::object now =
        py::reinterpret_steal<py::object>(PyObject_GetAttr(own.group.ptr(), settings_name.ptr()));
    if (!now) throw py::error_already_set();
    if (now.is(own.settings)) continue;
    if (!PyTuple_Check(now.ptr()) || PyTuple_GET_SIZE(now.ptr()) <= form_field)
      wrong_type("settings", "not what a group sets itself; set its options");
    if (field(now, form_field) != own.form.ptr()) return false;
    own.values = py::reinterpret_borrow<py::object>(field(now, values_field));
    const bool scheduled = PyTuple_GET_SIZE(field(now, scheduled_field)) != 0;
    own.at = scheduled ? py::object(now.attr("at")) : py::none();
    own.settings = std::move(now);
    others = true;
  }
  if (!others) return true;
  std::map<PyObject*, std::size_t> numbers;
  for (std::size_t i = 0; i < recipe_->groups.size(); ++i) {
    group_settings& own = recipe_->groups[i];
    own.kind = numbers.emplace(own.settings.ptr(), numbers.size()).first->second;
    own.before = py::object();
    if (kinds_[i] == own.kind) continue;
    kinds_[i] = own.kind;
    keyed_right_ = false;
  }
  drop_from(values_, numbers.size());
  values_.resize(numbers.size());
  return true;
}

// The hyperparameters of each kind of group in this step; the user's callables run here.
void plan::begin_groups(const py::object& lr) {
  std::size_t next = 0;
  for (group_settings& own : recipe_->groups) {
    if (own.kind != next) continue;  // each kind comes first where its number does
    ++next;
    py::object& h = values_[own.kind];
    py::object now = own.at.is_none() ? own.values : call(own.at, py::int_(iterations_));
    if (!lr.is_none()) {
      const double rate = number(lr);
      if (now.is(own.before) && rate == own.rate) continue;  // as in the step before
      own.before = now;
      own.rate = rate;
      now = py::reinterpret_steal<py::object>(PyDict_Copy(now.ptr()));
      now["lr"] = lr;
    } else {
      own.before = py::object();
    }
    h = std::move(now);
  }
}

// Puts gradients to the numbers of their members.
void plan::gather_gradients(const py::object& grads, const char* role,
                            std::vector<py::object>& found) {
  const std::size_t size = registry_.members().size();
  const auto fits = [&](const tree& s) {
    found.assign(size, py::object());  // a part of the parameters may be all there is
    return s.gather(grads.ptr(), found);
  };
  if (std::any_of(structures_.begin(), structures_.end(), fits)) return;
  auto [list, structure] =
      match_(grads, role).cast<std::pair<std::vector<py::object>, py::object>>();
  if (list.size() != size) throw py::value_error("grads: changed while they were looked over");
  found.swap(list);
  if (structure.is_none()) return;
  drop_from(structures_, 3);
  structures_.emplace_back(structure);
}

// The gradients by number, and the members that have one: of several pieces a tuple of them.
void plan::begin_gradients(const request& asked) {
  std::vector<member>& members = registry_.members();
  given_.resize(members.size());
  if (!asked.pieces.is_none()) {
    if (PyTuple_GET_SIZE(asked.pieces.ptr()) != static_cast<Py_ssize_t>(asked.weights.size()))
      throw py::value_error("weights: one for each of pieces");
    weights_ = asked.weights;
    std::vector<py::tuple> parts;
    for (std::size_t i = 0; i < members.size(); ++i) parts.emplace_back(weights_.size());
    std::vector<bool> any(members.size());
    std::size_t j = 0;
    for (const py::handle piece : py::reinterpret_borrow<py::tuple>(asked.pieces)) {
      std::vector<py::object> found;
      const std::string role = "pieces[" + std::to_string(j) + "]";
      gather_gradients(py::reinterpret_borrow<py::object>(piece), role.c_str(), found);
      for (std::size_t i = 0; i < members.size(); ++i) {
        const bool none = !found[i] || found[i].is_none();
        any[i] = any[i] || !none;
        parts[i][j] = none ? py::none() : as_array(members[i], found[i]);
      }
      ++j;
    }
    for (std::size_t i = 0; i < members.size(); ++i)
      given_[i] = any[i] ? py::object(std::move(parts[i])) : py::object();
  } else if (asked.grads.is_none()) {
    bool bound = false;
    for (std::size_t i = 0; i < members.size(); ++i) {
      given_[i] = members[i].g;
      bound = bound || !given_[i].is_none();
    }
    if (!bound) throw py::value_error("grads: none given and none bound; pass them, or bind them");
  } else {
    gather_gradients(asked.grads, "grads", given_);
  }
  select_gradients();
}

// All members, before any has one.
void plan::expect_gradients() {
  gradients_.clear();
  active_.resize(registry_.members().size());
  std::iota(active_.begin(), active_.end(), std::size_t{0});
  keyed_right_ = filled_ = false;
}

// The members that have a gradient, and theirs.
void plan::select_gradients() {
  gradients_.clear();
  replaced_.clear();
  std::size_t found = 0;
  bool others = false;
  for (std::size_t i = 0; i < registry_.members().size(); ++i) {
    py::object& g = given_[i];
    if (!g || g.is_none()) continue;
    if (found == active_.size()) active_.push_back(registry_.members().size());
    others = others || active_[found] != i;
    active_[found++] = i;
    begin_gradient(i, std::move(g));
  }
  if (others || found != active_.size()) keyed_right_ = filled_ = false;
  active_.resize(found);
}

// One member and its gradient. What depends on its settings, its count and its memory alone is the
// last one's, where that has the same: of arrays that step in turn all but the first go quickly.
void plan::begin_alone(std::size_t number, const py::object& g) {
  gradients_.clear();
  replaced_.clear();
  if (active_.size() != 1 || active_[0] != number) {
    active_.assign(1, number);
    filled_ = false;
  }
  begin_gradient(number, g);
  const member& m = registry_.members()[number];
  keyed_right_ =
      keyed_right_ && keyed_.size() == 1 && std::get<0>(keyed_[0].shared) == kinds_[m.group] &&
      std::get<1>(keyed_[0].shared) == m.decays && std::get<4>(keyed_[0].shared) == m.rule_case;
  if (!keyed_right_) return;
  std::get<2>(keyed_[0].shared) = m.count;
  std::get<3>(keyed_[0].shared) = m.memory;
}

// Takes a gradient in as the next one: an array in place of a number, or one of another type.
void plan::begin_gradient(std::size_t number, py::object g) {
  const member& m = registry_.members()[number];
  const bool plain = reinterpret_cast<PyObject*>(Py_TYPE(g.ptr())) == ndarray();
  const bool source = !plain && (has_pieces(g) || is_rows(g));
  if (!plain && !source && !py::isinstance<py::array>(g)) g = as_array(m, g);
  // The first array of bfloat16 may be this one, which needs no conversion.
  if (!recipe_->convert.is_none() && py::isinstance<py::array>(g)) recognize(g);
  if (!recipe_->convert.is_none() && !source &&
      !(py::isinstance<py::array>(g) && m.fits(g, aligned) && goes_with(kind_of(g), m.type))) {
    py::object stands = recipe_->convert(number, g);
    replaced_.emplace_back(std::exchange(g, stands), stands);
  }
  gradients_.push_back(std::move(g));
}

// One set of scalars for each key. Keys that once were apart stay so, even if they'd meet.
void plan::begin_sets() {
  if (keyed_right_) return;
  std::map<key, std::size_t> numbers;
  std::vector<set_of_scalars>().swap(keyed_);
  set_of_.clear();
  const std::vector<member>& members = registry_.members();
  for (const std::size_t i : active_) {
    const member& m = members[i];
    key own{kinds_[m.group], m.decays, m.count, m.memory, m.rule_case};
    std::size_t number = keyed_.size() - 1;  // neighbours mostly share one
    if (keyed_.empty() || keyed_[number].shared != own) {
      number = numbers.emplace(own, keyed_.size()).first->second;
      if (number == keyed_.size()) {
        set_of_scalars s{};
        s.part = call(recipe_->part, py::int_(m.group), py::bool_(m.decays), py::int_(m.rule_case));
        s.f = s.part.attr("f");
        s.names = s.part.attr("names");
        s.adapt = s.part.attr("adapt");
        s.is_cautious = s.part.attr("is_cautious").cast<bool>();
        s.refuses_rows = s.part.attr("refuses_rows").cast<std::string>();
        s.shared = std::move(own);
        keyed_.push_back(std::move(s));
      }
    }
    set_of_.push_back(number);
  }
  sets_.clear();
  const table& in_use = kernels();
  for (const set_of_scalars& s : keyed_) {
    const int rule = s.part.attr("kernel").cast<int>();
    if (rule < 0 || rule >= in_use.size) throw py::value_error("scalars: no such rule");
    if (PyTuple_GET_SIZE(s.names.ptr()) != in_use.rules[rule].scalars)
      throw py::value_error("scalars: the rule has another number of them");
    sets_.push_back(idle_scalars(rule));
  }
  for (std::size_t k = 0; k < active_.size(); ++k)
    if (members[active_[k]].states !=
        static_cast<std::size_t>(in_use.rules[sets_[set_of_[k]].rule].states))
      throw py::value_error("scalars: the rule has other state arrays");
  filled_ = false;
  keyed_right_ = true;
}

// 1/grad_scale: this step's, or the optimizer's. float has both, the inverse to 2^-127.
double plan::scale_of(const py::object& grad_scale) const {
  const py::object& found = grad_scale.is_none() ? recipe_->scale : grad_scale;
  const double scale = number(found);
  if (!(scale >= 1.17549e-38 && scale <= 1.70142e38))
    throw py::value_error("grad_scale: " + std::string(py::repr(py::float_(scale))) +
                          " is out of range, wanted [1.17549e-38, 1.70142e38]");
  return 1.0 / scale;
}

// Whether all that was read at the beginning is still so.
bool plan::as_read() const {
  static const auto& settings_name = *new py::object(interned("settings"));
  if (stale_) return false;
  for (const group_settings& own : recipe_->groups)
    if (!py::reinterpret_steal<py::object>(PyObject_GetAttr(own.group.ptr(), settings_name.ptr()))
             .is(own.settings)) {
      PyErr_Clear();
      return false;
    }
  return true;
}

}  // namespace schuss
