// The binding, and the only file that knows Python: the contract of the arrays, and the plan of a
// step.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#include <unistd.h>
#endif

#include "dispatch.hpp"
#include "driver.hpp"

namespace py = pybind11;

namespace schuss {
namespace {

using shape_t = std::vector<py::ssize_t>;

constexpr int c_order = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_;
constexpr int f_order = py::detail::npy_api::NPY_ARRAY_F_CONTIGUOUS_;
constexpr int aligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
constexpr int writeable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

// ---- Reading an array's fields. They are read anew at every step, since an array can be resized,
// re-typed or frozen in between.

const py::detail::PyArray_Proxy* fields(py::handle a) { return py::detail::array_proxy(a.ptr()); }
const PyObject* ndarray() {
  return reinterpret_cast<PyObject*>(py::detail::npy_api::get().PyArray_Type_);
}
shape_t shape_of(py::handle a) {
  return {fields(a)->dimensions, fields(a)->dimensions + fields(a)->nd};
}
bool has_shape(py::handle a, const shape_t& shape) {
  return static_cast<std::size_t>(fields(a)->nd) == shape.size() &&
         std::equal(shape.begin(), shape.end(), fields(a)->dimensions);
}
py::ssize_t size_of(const shape_t& shape) {
  py::ssize_t size = 1;
  for (const py::ssize_t n : shape) size *= n;
  return size;
}

// The storage kind of an array's dtype, if it is one of ours. bfloat16 comes from a package of its
// own, which need not be there: its dtype is known by name, and once seen by address.
std::optional<kind> kind_of(py::handle a) {
  static const void* bfloat16 = nullptr;
  const void* descr = fields(a)->descr;
  const py::detail::PyArrayDescr_Proxy* d = py::detail::array_descriptor_proxy(fields(a)->descr);
  constexpr int half = 23, user_types = 256;  // of NumPy's C interface
  if (d->byteorder == '>') return std::nullopt;
  if (d->type_num == py::detail::npy_api::NPY_FLOAT_) return kind::float32;
  if (d->type_num == py::detail::npy_api::NPY_DOUBLE_) return kind::float64;
  if (d->type_num == half) return kind::float16;
  if (descr == bfloat16) return kind::bfloat16;
  if (d->type_num < user_types) return std::nullopt;
  const py::object dtype = a.attr("dtype");
  if (!py::str(dtype).equal(py::str("bfloat16"))) return std::nullopt;
  bfloat16 = dtype.inc_ref().ptr();  // for ever, so that no other dtype takes its address
  return kind::bfloat16;
}

stream stream_of(py::handle a, kind k) {
  constexpr std::ptrdiff_t widths[] = {0, 4, 8, 2, 2};
  return {fields(a)->data, k, widths[static_cast<int>(k)]};
}
stream stream_of(py::handle a) { return stream_of(a, *kind_of(a)); }

// Whether an array of one kind may stand beside a parameter of another: all in float64, or none.
bool goes_with(std::optional<kind> k, kind parameter) {
  return k && (*k == kind::float64) == (parameter == kind::float64);
}

// ---- Messages. Each names the array, says what was wrong and what is wanted.

std::string text(py::handle object) { return py::str(object).cast<std::string>(); }
std::string shape_text(const shape_t& shape) { return text(py::tuple(py::cast(shape))); }
std::string dtype_text(py::handle a) { return text(a.attr("dtype")); }
std::string type_text(py::handle object) {
  return text(py::type::handle_of(object).attr("__name__"));
}

[[noreturn]] void wrong_value(const std::string& label, const std::string& what) {
  throw py::value_error(label + ": " + what);
}
[[noreturn]] void wrong_type(const std::string& label, const std::string& what) {
  throw py::type_error(label + ": " + what);
}

// A masked array is an ndarray whose mask nothing here would heed. The class is only looked up
// where it has been imported: else there is none.
bool is_masked(py::handle a) {
  const py::dict modules = py::module_::import("sys").attr("modules");
  return modules.contains("numpy.ma.core") &&
         py::isinstance(a, modules["numpy.ma.core"].attr("MaskedArray"));
}

// What every array must be, in the order in which a user would want to hear of it.
void require_array(py::handle a, const std::string& label) {
  if (!py::isinstance<py::array>(a))
    wrong_type(label, "not a numpy.ndarray (" + type_text(a) +
                          "); pass the array that is to be used in place");
  if (is_masked(a))
    wrong_type(label, "a masked array, whose mask would be ignored; pass its .data");
  if (!kind_of(a)) {
    if (a.attr("dtype").attr("isnative").cast<bool>())
      wrong_type(label, "dtype " + dtype_text(a) +
                            " is not supported; wanted float32, float64, float16 or bfloat16");
    wrong_value(label, "not in native byte order (dtype " + text(a.attr("dtype").attr("str")) +
                           "); pass a.astype(a.dtype.newbyteorder('='))");
  }
  if ((fields(a)->flags & (c_order | f_order)) == 0)
    wrong_value(label, "not contiguous (strides " + text(a.attr("strides")) + ", shape " +
                           shape_text(shape_of(a)) + "); pass a contiguous array");
  if ((fields(a)->flags & aligned) == 0)
    wrong_value(label, "not aligned to its element; pass an aligned array, such as a.copy()");
}

void require_writeable(py::handle a, const std::string& label) {
  if ((fields(a)->flags & writeable) == 0)
    wrong_value(label, "read-only, but the step writes to it; pass a writeable array");
}

void require_parameter(py::handle a, const std::string& label) {
  require_array(a, label);
  require_writeable(a, label);
}

// ---- The conversions of the table in use, for the proof over all numbers (tests/test_storage.py).

kind half_named(const std::string& name) {
  if (name == "float16") return kind::float16;
  if (name == "bfloat16") return kind::bfloat16;
  throw py::value_error("kind: '" + name + "', wanted float16 or bfloat16");
}

py::array_t<float> widen(const std::string& from,
                         const py::array_t<std::uint16_t, py::array::c_style>& in) {
  py::array_t<float> out(in.size());
  kernels().widen(half_named(from), in.data(), in.size(), out.mutable_data());
  return out;
}

py::array_t<std::uint16_t> narrow(const std::string& to,
                                  const py::array_t<float, py::array::c_style>& in) {
  py::array_t<std::uint16_t> out(in.size());
  kernels().narrow(half_named(to), in.data(), in.size(), out.mutable_data());
  return out;
}

// ---- The plan of a step.

// An array that stays beside a parameter, and its place in the span.
struct kept {
  py::array array;
  kind type;
  stream* (*place)(span&, std::size_t);
  bool written;
};

// The places by the role that Python names: "state" for those of the rule.
const std::map<std::string, std::pair<stream* (*)(span&, std::size_t), bool>> places = {
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
  void* gradient_at = nullptr;  // where the last gradient lay that overlapped nothing
};

// What the arrays that share a set of scalars have in common: group, decays, count, memory.
using key = std::tuple<py::ssize_t, bool, std::int64_t, std::vector<double>>;

// The memory of one array, for the overlap test.
struct range {
  const char *first, *last;
  const std::string* label;
  bool operator<(const range& other) const { return first < other.first; }
};

// Works without the GIL. Not gil_scoped_release: at the interpreter's end CPython ends a daemon
// thread that asks for the GIL, by unwinding it, and on the way it would meet destructors that need
// the GIL or may not throw. So it waits here for the process to end.
template <class Work> void freely(const Work& work) {
  PyThreadState* const thread = PyEval_SaveThread();
  work();
#if defined(__GLIBCXX__)
  try {
    PyEval_RestoreThread(thread);
  } catch (const abi::__forced_unwind&) {
    for (;;) pause();
  }
#else
  PyEval_RestoreThread(thread);
#endif
}

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

  // Begins a step with these gradients (None: the bound ones): says which sets of scalars it takes.
  // With zero_grad the step writes to them.
  std::vector<key> begin(const py::object& grads, bool zero_grad) {
    end();
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

  // Looks every array over that the step will touch. Arrays that fit take no call of Python, so
  // that what is seen is what is stepped; where one doesn't, Python may run, and all are looked at
  // anew.
  void check() {
    if (!begun_) throw py::value_error("check: no step has begun");
    try {
      if (!fill()) {
        explain();
        if (!fill()) throw py::value_error("params: changed while they were looked at");
      }
      find_written();
      for (std::size_t k = 0; k < active_.size(); ++k) {
        member& m = members_[active_[k].first];
        if (spans_[k].g.data != m.gradient_at) require_apart(m, gradients_[k]);
      }
      if (zero_grad_) require_gradients_apart();
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
    end();
  }

  // As run, where the next step will differ in the rules' scalars and in the gradients alone, and
  // can be had by `again`: returns the number of finished steps, or -1 where not every array
  // stepped.
  std::int64_t run_steady(const py::sequence& sets) {
    read_sets(sets);
    const std::vector<std::vector<double>> memories(sets_.size());
    std::vector<double> shared;
    require_memories(memories, shared);
    check();
    update();
    move_on(memories, shared);
    steady_ = active_.size() == members_.size();
    if (!steady_) end();
    gradients_.clear();
    return steady_ ? iterations_ : -1;
  }

  // A step as the one before, with these scalars of the rules, one tuple for each set, and these
  // gradients (None: the bound ones), which are scaled as before, or by `scale`. Returns the number
  // of finished steps; -1, and has done nothing, where it is no longer `now`, or where this step
  // differs in more.
  std::int64_t again(std::int64_t now, const py::list& rules, py::handle grads,
                     std::optional<double> scale) {
    if (!steady_ || now != iterations_ || rules.size() != sets_.size()) return -1;
    if (!take_gradients(grads)) return -1;
    for (std::size_t i = 0; i < sets_.size(); ++i) {
      if (scale) sets_[i].scale = std::copysign(*scale, sets_[i].scale);
      const py::tuple own = py::reinterpret_borrow<py::tuple>(rules[i]);
      double* const scalars = sets_[i].rule_scalars;
      for (std::size_t k = 0; k < own.size() && k < most_scalars; ++k)
        scalars[k] = own[k].cast<double>();
    }
    begun_ = true;
    check();
    update();
    for (member& m : members_) ++m.count;
    begun_ = false;
    gradients_.clear();
    return ++iterations_;
  }

  // What `norm` gives of the gradients with which `again` will step; nothing where it can't.
  std::optional<std::pair<double, bool>> norm_again(std::int64_t now, py::handle grads) {
    if (!steady_ || now != iterations_ || !take_gradients(grads)) return std::nullopt;
    begun_ = true;
    const std::pair<double, bool> found = measure_norm();
    begun_ = false;
    return found;
  }

  // Moves the counters and the memory as a step does.
  void advance(std::vector<std::vector<double>> memories, std::vector<double> shared) {
    if (!begun_) throw py::value_error("advance: no step has begun");
    require_memories(memories, shared);
    move_on(memories, shared);
    end();
  }

  // Lets go of a step's gradients.
  void end() {
    begun_ = steady_ = false;
    spans_.clear();
    active_.clear();
    gradients_.clear();
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

  // Written arrays may not overlap one another, nor a bound gradient.
  void require_disjoint() {
    find_written();
    for (member& m : members_)
      if (!m.g.is_none()) require_apart(m, m.g);
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
    begun_ = false;
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
  bool take_gradients(py::handle grads) {
    const bool list = PyList_Check(grads.ptr()) != 0;
    if (!grads.is_none() && !list && PyTuple_Check(grads.ptr()) == 0) return false;
    if (!grads.is_none() && py::len(grads) != members_.size()) return false;
    gradients_.clear();
    for (std::size_t i = 0; i < members_.size(); ++i) {
      const auto at = static_cast<py::ssize_t>(i);
      const py::handle g = grads.is_none() ? py::handle(members_[i].g)
                           : list          ? py::handle(PyList_GET_ITEM(grads.ptr(), at))
                                           : py::handle(PyTuple_GET_ITEM(grads.ptr(), at));
      if (g.is_none()) return false;
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
    spans_.clear();
    for (std::size_t k = 0; k < active_.size(); ++k) {
      const member& m = members_[active_[k].first];
      const py::handle g = gradients_[k];
      if (!fits(m, m.x, aligned | writeable) || kind_of(m.x) != m.type) return false;
      if (!fits(m, g, zero_grad_ ? aligned | writeable : aligned)) return false;
      const std::optional<kind> g_kind = kind_of(g);
      if (!goes_with(g_kind, m.type)) return false;
      span a{};
      a.x = stream_of(m.x, m.type);
      a.g = stream_of(g, *g_kind);
      a.size = size_of(m.shape);
      a.position = m.position;
      a.chunk = m.chunk;
      a.set = active_[k].second;
      for (std::size_t s = 0; s < m.keeps.size(); ++s) {
        const kept& beside = m.keeps[s];
        if (!fits(m, beside.array, flags_of(beside)) || kind_of(beside.array) != beside.type)
          return false;
        *beside.place(a, s) = stream_of(beside.array, beside.type);
      }
      spans_.push_back(a);
    }
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
      m.gradient_at = nullptr;
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
  void require_apart(member& m, py::handle g) {
    const char* first = fields(g)->data;
    const char* last = first + size_of(m.shape) * stream_of(g).width;
    auto after = std::lower_bound(ranges_.begin(), ranges_.end(), range{last, last, nullptr});
    if (first < last && after != ranges_.begin() && std::prev(after)->last > first)
      wrong_value(m.labels[1],
                  "overlaps " + *std::prev(after)->label +
                      ", which the step writes to; pass a gradient with memory of its own");
    m.gradient_at = fields(g)->data;
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
  std::vector<scalars> sets_;
  std::vector<std::pair<std::size_t, std::size_t>> active_;  // member, and number of its set
  std::vector<py::object> gradients_;                        // of the active members
  std::vector<double> sums_, looks_;                         // room for those of the chunks
  py::ssize_t elements_ = 0;
  std::int64_t iterations_ = 0;
  std::vector<double> shared_;
  bool begun_ = false, steady_ = false, zero_grad_ = false;
};

}  // namespace
}  // namespace schuss

PYBIND11_MODULE(_core, m) {
  using namespace schuss;
  m.doc() = "The compiled half of schuss: rules, driver, and the contract of the arrays.";

  py::class_<plan>(m, "Plan", "The arrays of a step, their contract and their counters.")
      .def(py::init<>())
      .def("add", &plan::add, py::arg("labels"), py::arg("x"), py::arg("keeps"), py::arg("g"),
           py::arg("group"), py::arg("decays"), py::arg("memory"))
      .def("require_disjoint", &plan::require_disjoint)
      .def("begin", &plan::begin, py::arg("grads"), py::arg("zero_grad"))
      .def("norm", &plan::measure_norm)
      .def("look", &plan::look, py::arg("sets"), py::arg("wanted"))
      .def("spread", &plan::spread)
      .def("check", &plan::check)
      .def("run", &plan::run, py::arg("sets"), py::arg("memories"), py::arg("shared"))
      .def("run_steady", &plan::run_steady, py::arg("sets"))
      .def("again", &plan::again, py::arg("now"), py::arg("rules"), py::arg("grads"),
           py::arg("scale"))
      .def("norm_again", &plan::norm_again, py::arg("now"), py::arg("grads"))
      .def("advance", &plan::advance, py::arg("memories"), py::arg("shared"))
      .def("end", &plan::end)
      .def("active", &plan::active)
      .def("counts", &plan::counts)
      .def("memories", &plan::memories)
      .def("restore", &plan::restore, py::arg("iterations"), py::arg("counts"), py::arg("memories"),
           py::arg("shared"))
      .def_property_readonly("shared", &plan::shared)
      .def_property_readonly("iterations", &plan::iterations);

  m.def("require_parameter", &require_parameter, py::arg("x"), py::arg("label"));
  m.def("rules", [] {
    std::vector<std::tuple<std::string, int, int, bool>> all;
    for (int i = 0; i < kernels().size; ++i)
      all.emplace_back(kernels().rules[i].name, kernels().rules[i].states,
                       kernels().rules[i].scalars, kernels().rules[i].looks);
    return all;
  });
  m.def("compiled_isas", &compiled_isas);
  m.def("found_isas", &found_isas);
  m.def("isa", [] { return std::string(kernels().isa); });
  m.def("use_isa", &use_isa, py::arg("name"));
  m.def("widen", &widen, py::arg("kind"), py::arg("bits"),
        "The numbers that these bits of float16 or bfloat16 stand for, as a step reads them.");
  m.def("narrow", &narrow, py::arg("kind"), py::arg("numbers"),
        "The bits of these numbers in float16 or bfloat16, as a step stores them.");

  m.def("threads", [] {
    const thread_limit limit = threads();
    return std::make_pair(limit.threads, std::string(limit.reason));
  });
  m.def("set_threads_here", &set_threads_here, py::arg("n"));
  m.def("set_threads_everywhere", &set_threads_everywhere, py::arg("n"));
  m.def("set_threads_from_environment", &set_threads_from_environment, py::arg("n"));
  m.def("set_quota", &set_quota, py::arg("n"));
  m.def("set_grain", &set_grain, py::arg("n"));
  m.def("widest_region", &widest_region);
  m.def("share", &share, py::arg("size"), py::arg("bytes_per_element"), py::arg("before"),
        py::arg("total"), py::arg("rank"), py::arg("team"));
}
