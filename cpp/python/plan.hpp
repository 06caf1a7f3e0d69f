// The plan of a step: the arrays that it touches, with their contract and their counters.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>

#include "contract.hpp"
#include "dispatch.hpp"
#include "driver.hpp"
#include "interpreter.hpp"

namespace schuss {

// An array that stays beside a parameter, and its place in the span.
struct kept {
  py::array array;
  kind type;
  stream* (*place)(span&, std::size_t);
  bool written;
};

// The places by the role that Python names: "state" for those of the rule.
inline const std::map<std::string, std::pair<stream* (*)(span&, std::size_t), bool>> places = {
    {"state", {[](span& a, std::size_t s) { return &a.state[s]; }, true}},
    {"master", {[](span& a, std::size_t) { return &a.master; }, true}},
    {"average", {[](span& a, std::size_t) { return &a.average; }, true}},
    {"low", {[](span& a, std::size_t) { return &a.low; }, false}},
    {"high", {[](span& a, std::size_t) { return &a.high; }, false}},
};

// One parameter with its gradient and its state: what is registered, and so what each step must
// find again.
struct member {
  std::vector<std::string> labels;  // how messages name x, g and each state array
  py::array x;
  std::vector<kept> keeps;  // the rule's state arrays, then others
  py::object g;             // bound, or None
  shape_t shape;
  kind type;
  py::ssize_t position, chunk;  // elements and chunks of the members before it
  py::object gradient_class;    // the class of a gradient that was looked at and found good
  py::ssize_t group;            // of the arrays that share hyperparameters
  bool decays;                  // whether its group's weight decay is for it, too
  std::vector<double> memory;   // numbers that its rule keeps beside the arrays
  std::size_t states = 0;       // arrays that are the rule's
  std::int64_t count = 0;       // finished steps of this array
  const char *apart = nullptr, *apart_end = nullptr;  // memory of the last gradient that was looked
                                                      // at and overlaps nothing that is written
};

// How a set's scalars are had while nothing is set between the steps: f(h, t) has its rule's under
// these names, or, where there are none, is all of them. h is that of the group where there is
// none.
struct part {
  py::object f, h;
  std::size_t group;
  std::int64_t ahead;  // what a step's t is ahead of the number of finished steps
  std::optional<std::vector<py::object>> names;
};

// A group, its settings while they are not others, and what has its h after so many steps, where it
// changes with them.
struct settled_group {
  py::object group, settings, at;
};

// What the arrays that share a set of scalars have in common: group, decays, count, memory.
using key = std::tuple<py::ssize_t, bool, std::int64_t, std::vector<double>>;

// The memory of one array, for the overlap test.
struct range {
  const char *first, *last;
  const std::string* label;
  bool operator<(const range& other) const { return first < other.first; }
};

class plan {
 public:
  // Takes a parameter in, with the arrays that stay beside it by role; nothing is changed where it
  // can't be.
  void add(std::vector<std::string> labels, py::object x,
           std::vector<std::pair<std::string, py::object>> keeps, py::object g, py::ssize_t group,
           bool decays, std::vector<double> memory) {
    if (labels.size() != keeps.size() + 2)
      throw py::value_error("labels: one for x, g and each array beside them");
    require_parameter(x, labels[0]);
    member m{std::move(labels),
             py::reinterpret_borrow<py::array>(x),
             {},
             std::move(g),
             shape_of(x),
             *kind_of(x),
             elements_,
             static_cast<py::ssize_t>(sums_.size()),
             py::none(),
             group,
             decays,
             std::move(memory)};
    for (std::size_t s = 0; s < keeps.size(); ++s) {
      const auto& [role, a] = keeps[s];
      const auto [place, written] = places.at(role);
      require_like(m, a, m.labels[s + 2], role.c_str());
      if (written) require_writeable(a, m.labels[s + 2]);
      if (role == "state") ++m.states;
      m.keeps.push_back({py::reinterpret_borrow<py::array>(a), *kind_of(a), place, written});
    }
    if (m.states > most_states) throw py::value_error("state: too many arrays");
    if (!m.g.is_none()) require_like(m, m.g, m.labels[1], "gradient");
    elements_ += size_of(m.shape);
    sums_.resize(sums_.size() + static_cast<std::size_t>(chunks(size_of(m.shape))));
    members_.push_back(std::move(m));
    ranges_.clear();
    spans_.reserve(members_.size());
    active_.reserve(members_.size());
    gradients_.reserve(members_.size());
  }

  bool settled() const { return settled_; }

  // Begins a step with these gradients (None: the bound ones): says which sets of scalars it takes.
  // With zero_grad the step writes to them.
  std::vector<key> begin(const py::object& grads, bool zero_grad) {
    end();
    active_.clear();
    filled_ = false;
    zero_grad_ = zero_grad;
    const bool given = !grads.is_none();
    const py::sequence list =
        given ? py::reinterpret_borrow<py::sequence>(grads) : py::sequence(py::tuple());
    if (given && list.size() != members_.size())
      throw py::value_error("grads: " + std::to_string(list.size()) + " given, " +
                            std::to_string(members_.size()) + " wanted");
    std::vector<key> keys;
    std::map<key, std::size_t> numbers;
    for (std::size_t i = 0; i < members_.size(); ++i) {
      const member& m = members_[i];
      py::object g = given ? py::object(list[i]) : m.g;
      if (g.is_none()) continue;
      key k{m.group, m.decays, m.count, m.memory};
      std::size_t set = keys.size() - 1;  // neighbours mostly share one
      if (keys.empty() || keys[set] != k) {
        set = numbers.emplace(k, keys.size()).first->second;
        if (set == keys.size()) keys.push_back(std::move(k));
      }
      active_.emplace_back(i, set);
      gradients_.push_back(std::move(g));
    }
    begun_ = true;
    return keys;
  }

  // Looks every array over that the step will touch.
  void check() {
    if (!begun_) throw py::value_error("check: no step has begun");
    try {
      if (!refill()) fill_anew();
    } catch (...) {
      end();
      throw;
    }
  }

  // The sum of the squares of the gradients, and whether all are finite.
  std::pair<double, bool> measure_norm() {
    check();
    measure found{};
    freely([&] { found = norm(kernels(), spans_, sums_); });
    return {found.squares, found.finite};
  }

  // What a step with these sets would do: the wanted sums of each array (kernel.hpp, looking).
  std::vector<std::array<double, most_sums>> look(const py::sequence& sets, int wanted) {
    read_sets(sets);
    check();
    looks_.resize(sums_.size() * most_sums);
    freely([&] { schuss::look(kernels(), spans_, sets_, wanted, looks_); });
    std::vector<std::array<double, most_sums>> found;
    for (const span& a : spans_) {
      const double* own = looks_.data() + most_sums * a.chunk;
      std::array<double, most_sums> sums{};
      if (a.size > 0) std::copy(own, own + most_sums, sums.begin());
      found.push_back(sums);
    }
    return found;
  }

  // From here on each array of the step has a set of scalars of its own.
  void spread() {
    std::size_t own = 0;
    for (auto& [i, set] : active_) set = own++;
    filled_ = false;
  }

  // Updates what fits, with a set of scalars for each key that begin returned, and moves the
  // counters and the memory with the data.
  void run(const py::sequence& sets, std::vector<std::vector<double>> memories,
           std::vector<double> shared) {
    read_sets(sets);
    require_memories(memories, shared);
    check();
    update();
    move_on(memories, shared);
  }

  // From here on `again` takes a step, until something is set, or not every array has a gradient.
  // There is a part for each set. Gradients come in a list or a tuple where there are no keys, or
  // in a dict with these. `clip`, where there is one, returns what gradients are scaled by for the
  // sum of their squares and whether all are finite; None ends it, too.
  void settle(const py::object& lock, const std::vector<py::object>& groups,
              const std::vector<py::object>& at, const py::sequence& parts,
              std::optional<std::vector<py::object>> keys, py::object clip) {
    if (begun_ || active_.size() != members_.size() || parts.size() != sets_.size() ||
        groups.size() != at.size())
      throw py::value_error("settle: a part for each set, after a step of all arrays");
    acquire_ = lock.attr("acquire");
    release_ = lock.attr("release");
    groups_.clear();
    for (std::size_t i = 0; i < groups.size(); ++i)
      groups_.push_back({groups[i], groups[i].attr("settings"), at[i]});
    parts_.clear();
    for (const py::handle& p : parts) {
      auto [f, h, group, ahead, names] =
          p.cast<std::tuple<py::object, py::object, std::size_t, std::int64_t,
                            std::optional<std::vector<py::object>>>>();
      if (group >= groups.size()) throw py::value_error("settle: a part of no group");
      parts_.push_back({std::move(f), std::move(h), group, ahead, std::move(names)});
    }
    values_.resize(groups.size());
    keys_ = std::move(keys);
    clip_ = std::move(clip);
    settled_ = true;
  }

  // A step like the one before, with these gradients (None: the bound ones). False, with nothing
  // done, where more has changed than what the parts say.
  bool again(const py::object& grads) {
    if (!settled_) return false;
    const held lock(acquire_, release_);
    if (busy_) return false;  // entered again, which the call that follows refuses
    const within step(*this);
    if (!as_settled() || !take_gradients(grads)) return false;
    read_parts();
    if (!as_settled()) return false;  // wherever Python runs, something may be set: that counts
    begun_ = true;
    if (!clip_.is_none()) {
      const auto [squares, finite] = measure_norm();
      const py::object scale = clip_(squares, finite);
      if (!settled_ || scale.is_none()) return false;
      for (scalars& c : sets_) c.scale = std::copysign(scale.cast<double>(), c.scale);
    }
    check();
    update();
    for (member& m : members_) ++m.count;
    ++iterations_;
    return true;
  }

  // Whether a thread is within `again`; in a forked child there is no such thread any more.
  bool busy() const { return busy_; }
  void free() {
    busy_ = false;
    end();
  }

  // Moves the counters and the memory as a step does.
  void advance(std::vector<std::vector<double>> memories, std::vector<double> shared) {
    if (!begun_) throw py::value_error("advance: no step has begun");
    require_memories(memories, shared);
    move_on(memories, shared);
  }

  // Leaves a step undone, and takes the next one from its beginning.
  void end() {
    settled_ = false;
    rest();
  }

  // The members of the step, each with the number of its set of scalars: for a step in Python.
  const std::vector<std::pair<std::size_t, std::size_t>>& active() const { return active_; }

  std::vector<std::int64_t> counts() const {
    std::vector<std::int64_t> all;
    for (const member& m : members_) all.push_back(m.count);
    return all;
  }
  std::vector<std::vector<double>> memories() const {
    std::vector<std::vector<double>> all;
    for (const member& m : members_) all.push_back(m.memory);
    return all;
  }
  const std::vector<double>& shared() const { return shared_; }

  // Sets what a step moves: the counters, each member's memory, and what all of them share.
  void restore(std::int64_t iterations, const std::vector<std::int64_t>& counts,
               std::vector<std::vector<double>> memories, std::vector<double> shared) {
    if (counts.size() != members_.size() || memories.size() != members_.size())
      throw py::value_error("restore: a count and a memory for each parameter");
    for (std::size_t i = 0; i < members_.size(); ++i) {
      members_[i].count = counts[i];
      members_[i].memory = std::move(memories[i]);
    }
    iterations_ = iterations;
    shared_ = std::move(shared);
    end();
  }

  std::int64_t iterations() const { return iterations_; }

  // Calls see(object) for what may lead back to the optimizer, such as a schedule that asks it, or
  // an array of a class of the user's: without it the garbage collector would keep them for ever.
  template <class See> int visit(const See& see) const {
    const auto seen = [&see](const auto&... objects) {
      int stopped = 0;
      ((stopped = stopped != 0 ? stopped : see(objects.ptr())), ...);
      return stopped;
    };
    int stopped = seen(acquire_, release_, clip_);
    for (const member& m : members_) {
      if (stopped == 0) stopped = seen(m.x, m.g, m.gradient_class);
      for (const kept& beside : m.keeps)
        if (stopped == 0) stopped = seen(beside.array);
    }
    for (const settled_group& g : groups_)
      if (stopped == 0) stopped = seen(g.group, g.settings, g.at);
    for (const part& p : parts_)
      if (stopped == 0) stopped = seen(p.f, p.h);
    for (const auto* objects : {&values_, &gradients_})
      for (const py::object& object : *objects)
        if (stopped == 0) stopped = seen(object);
    return stopped;
  }

  // Written arrays may not overlap one another, nor a bound gradient.
  void require_disjoint() {
    find_written();
    for (member& m : members_)
      if (!m.g.is_none()) require_apart(m, stream_of(m.g));
  }

 private:
  void read_sets(const py::sequence& sets) {
    const table& in_use = kernels();
    sets_.clear();
    for (const py::handle& values : sets)
      sets_.push_back(read_scalars(in_use, py::reinterpret_borrow<py::tuple>(values)));
    for (const auto& [i, set] : active_) {
      if (set >= sets_.size()) throw py::value_error("sets: one of scalars for each key");
      const int states = in_use.rules[sets_[set].rule].states;
      if (static_cast<std::size_t>(states) != members_[i].states)
        throw py::value_error("sets: the rule has other state arrays");
    }
  }

  // Marks that a thread is within `again`, and lets go of the gradients at its end.
  class within {
   public:
    explicit within(plan& own) : own_(own) { own_.busy_ = true; }
    ~within() {
      own_.busy_ = false;
      own_.rest();
    }
    within(const within&) = delete;
    within& operator=(const within&) = delete;

   private:
    plan& own_;
  };

  bool as_settled() const {
    for (const settled_group& own : groups_)
      if (!py::object(own.group.attr(settings_)).is(own.settings)) return false;
    return settled_;
  }

  // The scalars of the coming step, by the parts.
  void read_parts() {
    const table& in_use = kernels();
    for (std::size_t i = 0; i < groups_.size(); ++i)
      if (!groups_[i].at.is_none()) values_[i] = call(groups_[i].at, py::int_(iterations_));
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const part& p = parts_[i];
      const py::object found =
          call(p.f, p.h.is_none() ? values_[p.group] : p.h, py::int_(iterations_ + p.ahead));
      if (!p.names) sets_[i] = read_scalars(in_use, found.cast<py::tuple>());
      for (std::size_t k = 0; p.names && k < p.names->size(); ++k)
        sets_[i].rule_scalars[k] = py::float_(py::object(found[(*p.names)[k]]));
    }
  }

  static scalars read_scalars(const table& in_use, const py::tuple& values) {
    scalars c{};
    std::size_t i = 0;
    const auto next = [&] { return values[i++].cast<double>(); };
    double* const stages[] = {&c.scale,      &c.clip, &c.l2,      &c.l1,    &c.agree,
                              &c.oppose,     &c.keep, &c.masked,  &c.after, &c.threshold,
                              &c.low,        &c.high, &c.average, &c.flush, &c.zero_grad,
                              &c.stochastic, &c.key};
    if (values.size() <= std::size(stages)) throw py::value_error("scalars: too few");
    c.rule = values[i++].cast<int>();
    for (double* stage : stages) *stage = next();
    if (c.rule < 0 || c.rule >= in_use.size) throw py::value_error("scalars: no such rule");
    if (values.size() - i != static_cast<std::size_t>(in_use.rules[c.rule].scalars))
      throw py::value_error("scalars: the rule has another number of them");
    for (double& own : c.rule_scalars)
      if (i < values.size()) own = next();
    return c;
  }

  void require_memories(const std::vector<std::vector<double>>& memories,
                        const std::vector<double>& shared) const {
    bool fit = shared.size() == shared_.size();
    for (const auto& [i, set] : active_)
      fit = fit && set < memories.size() && memories[set].size() == members_[i].memory.size();
    if (!fit) throw py::value_error("memories: one for each key, as long as those before");
  }

  void move_on(const std::vector<std::vector<double>>& memories, std::vector<double>& shared) {
    for (const auto& [i, set] : active_) {
      ++members_[i].count;
      std::copy(memories[set].begin(), memories[set].end(), members_[i].memory.begin());
    }
    shared_.swap(shared);
    ++iterations_;
    rest();
  }

  // Between two steps: lets go of the gradients.
  void rest() {
    begun_ = false;
    gradients_.clear();
  }

  // Without the GIL where that is worth its cost: others may run while many elements are updated.
  void update() {
    std::ptrdiff_t elements = 0;
    for (const span& a : spans_) elements += a.size;
    const auto work = [&] { schuss::run(kernels(), spans_, sets_); };
    if (elements < chunk)
      work();
    else
      freely(work);
  }

  // The gradients of a step in which every member takes part; false where one has none.
  bool take_gradients(const py::object& grads) {
    const std::size_t size = members_.size();
    PyObject* const given = grads.ptr();
    const bool list = PyList_Check(given) != 0, tuple = PyTuple_Check(given) != 0;
    const bool dict = PyDict_CheckExact(given) != 0 && keys_ && keys_->size() == size;
    if (!grads.is_none() && (keys_ ? !dict : !list && !tuple)) return false;
    if (!grads.is_none() && (dict ? PyDict_Size(given) : PySequence_Fast_GET_SIZE(given)) !=
                                static_cast<py::ssize_t>(size))
      return false;
    gradients_.clear();
    for (std::size_t i = 0; i < size; ++i) {
      PyObject* const g = grads.is_none() ? members_[i].g.ptr()
                          : dict          ? PyDict_GetItemWithError(given, (*keys_)[i].ptr())
                                          : PySequence_Fast_ITEMS(given)[i];
      if (g == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
      if (g == nullptr || g == Py_None) return false;
      gradients_.push_back(py::reinterpret_borrow<py::object>(g));
    }
    return true;
  }

  // Whether an array has what its parameter asks for, its class included: ndarray, the parameter's,
  // or one that was looked at before.
  static bool fits(const member& m, py::handle a, int flags) {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(a.ptr()));
    return (type == reinterpret_cast<PyObject*>(Py_TYPE(m.x.ptr())) || type == ndarray() ||
            type == m.gradient_class.ptr()) &&
           (fields(a)->flags & flags) == flags && has_shape(a, m.shape) &&
           (fields(a)->flags & fields(m.x)->flags & (c_order | f_order)) != 0;
  }

  static int flags_of(const kept& k) { return k.written ? aligned | writeable : aligned; }

  // Fills the spans from the arrays as they are now; false where one doesn't fit.
  bool fill() {
    filled_ = false;
    spans_.clear();
    seen_.clear();
    seen_gradients_.clear();
    for (std::size_t k = 0; k < active_.size(); ++k) {
      const member& m = members_[active_[k].first];
      if (!fits(m, m.x, aligned | writeable) || kind_of(m.x) != m.type) return false;
      span a{};
      a.x = stream_of(m.x, m.type);
      a.size = size_of(m.shape);
      a.width = a.x.width;
      a.position = m.position;
      a.chunk = m.chunk;
      a.set = active_[k].second;
      seen_.emplace_back(m.x, m.shape);
      for (std::size_t s = 0; s < m.keeps.size(); ++s) {
        const kept& beside = m.keeps[s];
        if (!fits(m, beside.array, flags_of(beside)) || kind_of(beside.array) != beside.type)
          return false;
        stream& place = *beside.place(a, s);
        place = stream_of(beside.array, beside.type);
        a.width += place.width;
        seen_.emplace_back(beside.array, m.shape);
      }
      if (!fill_gradient(a, m, gradients_[k])) return false;
      seen_gradients_.emplace_back(gradients_[k], m.shape);
      spans_.push_back(a);
    }
    return true;
  }

  bool fill_gradient(span& a, const member& m, py::handle g) const {
    if (!fits(m, g, zero_grad_ ? aligned | writeable : aligned)) return false;
    const std::optional<kind> type = kind_of(g);
    if (!goes_with(type, m.type)) return false;
    a.width -= a.g.width;
    a.g = stream_of(g, *type);
    a.width += a.g.width;
    return true;
  }

  // Fills the spans; throws where an array isn't as it has to be. Arrays that fit take no call of
  // Python, so that what is seen is what is stepped; where one doesn't, Python may run, and all are
  // looked at anew.
  void fill_anew() {
    if (!fill()) {
      explain();
      if (!fill()) throw py::value_error("params: changed while they were looked at");
    }
    find_written();
    for (std::size_t k = 0; k < active_.size(); ++k)
      require_apart(members_[active_[k].first], spans_[k].g);
    if (zero_grad_) require_gradients_apart();
    filled_ = true;
  }

  // Whether the spans are still right. Gradients may be others: those are put in their place.
  bool refill() {
    if (!filled_) return false;
    for (const sighting& beside : seen_)
      if (!beside.still()) return false;
    bool others = false;
    for (std::size_t k = 0; k < active_.size(); ++k) {
      if (seen_gradients_[k].still(gradients_[k])) continue;
      member& m = members_[active_[k].first];
      if (!fill_gradient(spans_[k], m, gradients_[k])) return false;
      seen_gradients_[k] = sighting(gradients_[k], m.shape);
      require_apart(m, spans_[k].g);
      others = true;
    }
    if (others && zero_grad_) require_gradients_apart();
    return true;
  }

  // Says what is wrong with the first array that doesn't fit; returns where only a gradient's class
  // was new, which is then accepted.
  void explain() {
    for (std::size_t k = 0; k < active_.size(); ++k) {
      member& m = members_[active_[k].first];
      require_unchanged(m, m.x, m.type, aligned | writeable, m.labels[0]);
      for (std::size_t s = 0; s < m.keeps.size(); ++s) {
        const kept& beside = m.keeps[s];
        require_unchanged(m, beside.array, beside.type, flags_of(beside), m.labels[s + 2]);
      }
      require_like(m, gradients_[k], m.labels[1], "gradient");
      if (zero_grad_) require_writeable(gradients_[k], m.labels[1]);
      m.gradient_class = py::type::of(gradients_[k]);
    }
  }

  static void require_unchanged(const member& m, py::handle a, kind type, int flags,
                                const std::string& label) {
    if (fits(m, a, flags) && kind_of(a) == type) return;
    require_array(a, label);
    if ((flags & writeable) != 0) require_writeable(a, label);
    if (!has_shape(a, m.shape))
      wrong_value(label, "shape " + shape_text(shape_of(a)) + " is no longer the registered " +
                             shape_text(m.shape) + "; restore it, or rebind arrays of that shape");
    wrong_value(label, "dtype " + dtype_text(a) +
                           " or its memory order is no longer the registered one; restore it, or "
                           "rebind arrays of that kind");
  }

  // A state array or a gradient: shape, order and type of the parameter.
  static void require_like(const member& m, py::handle a, const std::string& label,
                           const char* role) {
    require_array(a, label);
    if (!has_shape(a, m.shape))
      wrong_value(label, "shape " + shape_text(shape_of(a)) + ", but " + m.labels[0] +
                             " has shape " + shape_text(m.shape));
    if (!goes_with(kind_of(a), m.type)) {
      const std::string wanted = m.type == kind::float64 ? "float64" : "float32";
      wrong_type(label, dtype_text(a) + ", but " + m.labels[0] + " is " + dtype_text(m.x) +
                            "; pass the " + role + " as .astype(np." + wanted +
                            "), or make the parameter " + dtype_text(a));
    }
    if ((fields(a)->flags & fields(m.x)->flags & (c_order | f_order)) == 0) {
      const bool c = (fields(m.x)->flags & c_order) != 0;
      wrong_value(label, std::string("in ") + (c ? "Fortran" : "C") + " order, but " + m.labels[0] +
                             " is in " + (c ? "C" : "Fortran") + " order; " +
                             (c ? "compute it in C order (x.T @ dy, not (dy.T @ x).T), or pass "
                                  "np.ascontiguousarray"
                                : "pass np.asfortranarray") +
                             " of it");
    }
  }

  // The written memory of all members, in order; found anew when an array has moved.
  void find_written() {
    bool moved = ranges_.empty();
    std::size_t n = 0;
    const auto look = [&](py::handle a) { moved = moved || addresses_[n++] != fields(a)->data; };
    for (const member& m : members_) {
      if (moved) break;
      look(m.x);
      for (const kept& beside : m.keeps) look(beside.array);
    }
    if (!moved) return;
    ranges_.clear();
    addresses_.clear();
    for (member& m : members_) {
      m.apart = m.apart_end = nullptr;
      take(m.x, m.labels[0]);
      for (std::size_t s = 0; s < m.keeps.size(); ++s) take(m.keeps[s].array, m.labels[s + 2]);
    }
    try {
      require_apart_in(ranges_);
    } catch (...) {
      ranges_.clear();
      throw;
    }
  }

  // Sorts what is written, and says where two arrays share memory.
  static void require_apart_in(std::vector<range>& written) {
    std::sort(written.begin(), written.end());
    for (std::size_t i = 1; i < written.size(); ++i)
      if (written[i - 1].last > written[i].first)
        wrong_value(*written[i].label, "overlaps " + *written[i - 1].label +
                                           ", and the step writes to both; pass arrays that share "
                                           "no memory");
  }

  void take(const py::array& a, const std::string& label) {
    addresses_.push_back(fields(a)->data);
    const char* first = fields(a)->data;
    if (a.nbytes() > 0) ranges_.push_back({first, first + a.nbytes(), &label});
  }

  // A gradient is only read, so gradients may overlap one another, but nothing that the step
  // writes.
  void require_apart(member& m, const stream& g) {
    const char* first = static_cast<const char*>(g.data);
    const char* last = first + size_of(m.shape) * g.width;
    if (first == m.apart && last == m.apart_end) return;
    auto after = std::lower_bound(ranges_.begin(), ranges_.end(), range{last, last, nullptr});
    if (first < last && after != ranges_.begin() && std::prev(after)->last > first)
      wrong_value(m.labels[1],
                  "overlaps " + *std::prev(after)->label +
                      ", which the step writes to; pass a gradient with memory of its own");
    m.apart = first;
    m.apart_end = last;
  }

  // Gradients that are zeroed may not overlap one another either: one would be zeroed before the
  // other is read.
  void require_gradients_apart() {
    std::vector<range> found;
    for (std::size_t k = 0; k < active_.size(); ++k) {
      const char* first = fields(gradients_[k])->data;
      const py::ssize_t bytes = spans_[k].size * spans_[k].g.width;
      if (bytes > 0) found.push_back({first, first + bytes, &members_[active_[k].first].labels[1]});
    }
    require_apart_in(found);
  }

  std::vector<member> members_;
  std::vector<range> ranges_;
  std::vector<const char*> addresses_;
  std::vector<span> spans_;
  std::vector<sighting> seen_, seen_gradients_;  // of each active member x and what is kept
  std::vector<scalars> sets_;
  std::vector<std::pair<std::size_t, std::size_t>> active_;  // member, and number of its set
  std::vector<py::object> gradients_;                        // of the active members
  std::vector<double> sums_, looks_;                         // room for those of the chunks
  py::ssize_t elements_ = 0;
  std::int64_t iterations_ = 0;
  std::vector<double> shared_;
  bool zero_grad_ = false;
  bool begun_ = false;    // within a step
  bool busy_ = false;     // within `again`
  bool filled_ = false;   // spans_ and seen_ are those of active_
  bool settled_ = false;  // the next step can be had by `again`, with what follows
  py::object acquire_, release_, clip_;
  std::vector<settled_group> groups_;
  std::vector<part> parts_;
  std::vector<py::object> values_;  // the h of each group, where it changes
  std::optional<std::vector<py::object>> keys_;
  py::object settings_ = py::reinterpret_steal<py::object>(PyUnicode_InternFromString("settings"));
};

}  // namespace schuss
