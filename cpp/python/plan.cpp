#include "plan.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace schuss {

namespace {

double number(py::handle value) {
  const double found = PyFloat_AsDouble(value.ptr());
  if (found == -1.0 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return found;
}

// Lets go of objects one by one, each out of reach before it is: as it goes Python may run, and the
// garbage collector look at the others.
void drop(std::vector<py::object>& objects) {
  for (py::object& object : objects) const py::object gone = std::exchange(object, py::object());
  objects.clear();
}

// An empty dict that nobody writes to.
py::dict nothing() {
  static const auto& empty = *new py::dict();
  return empty;
}

bool is_nan(kind k, std::uint16_t bits) {
  return (bits & 0x7fff) > (k == kind::float16 ? 0x7c00 : 0x7f80);
}

// Members of Python's class Settings, a tuple.
enum settings_field : Py_ssize_t { values_field = 1, scheduled_field = 2, form_field = 5 };

PyObject* field(const py::object& settings, settings_field f) {
  return PyTuple_GET_ITEM(settings.ptr(), static_cast<Py_ssize_t>(f));
}

// Steps at whose beginning every array is looked up in the user's containers; later only so many
// at each, in turn, since a thousand look-ups would be a good part of a step.
constexpr std::int64_t all_watched = 100;
constexpr std::size_t watched_in_turn = 8;

// A gradient that is a number, for a parameter of no dimension.
py::object as_array(const member& m, const py::object& g) {
  static const auto& numpy = *new py::module_(py::module_::import("numpy"));
  const bool generic = py::isinstance(g, numpy.attr("generic"));
  const bool plain = PyFloat_Check(g.ptr()) != 0 || PyLong_CheckExact(g.ptr()) != 0;
  if (!m.shape.empty() || !(generic || plain)) return g;
  return generic ? numpy.attr("asarray")(g) : numpy.attr("asarray")(g, m.x.attr("dtype"));
}

// Whether two arrays are views of the same memory, of the same kind.
bool same_memory(const member& m, PyObject* other) {
  return py::isinstance<py::array>(other) && fields(other)->data == fields(m.x)->data &&
         has_shape(other, m.shape) && kind_of(other) == m.type &&
         (fields(other)->flags & fields(m.x)->flags & (c_order | f_order)) != 0;
}

}  // namespace

// ---- What is registered

void plan::add(std::vector<std::string> labels, py::object x,
               const std::vector<std::pair<std::string, py::object>>& keeps, py::object g,
               std::size_t group, bool decays, std::vector<double> memory) {
  registry_.add(std::move(labels), std::move(x), keeps, std::move(g), group, decays,
                std::move(memory));
  let_go();
  keyed_right_ = filled_ = false;
}

void plan::keep_first(std::size_t size) {
  registry_.keep_first(size);
  let_go();
  keyed_right_ = filled_ = false;
}

void plan::rebind(const std::vector<py::object>& arrays) {
  if (arrays.size() != registry_.members().size())
    throw py::value_error("params: one array for each parameter");
  filled_ = false;
  registry_.rebind(arrays);
}

void plan::expect(const std::vector<py::object>& structures) {
  std::vector<tree> all;
  for (const py::object& s : structures) all.emplace_back(s);
  if (busy_)
    coming_ = std::move(all);  // a step walks through those that there are
  else
    structures_.swap(all);
}

py::object plan::gather(const py::object& values) const {
  std::vector<py::object> found(registry_.members().size());
  if (structures_.empty() || !structures_.front().gather(values.ptr(), found)) return py::none();
  return py::cast(found);
}

void plan::expect_more(const py::object& structure) {
  structures_.resize(1, tree(structure));
  structures_.front().append(tree(structure));
}

void plan::watch_more(const py::object& container, const py::object& structure) {
  containers_.emplace_back(container, tree(structure));
}

void plan::watch(const std::vector<std::pair<py::object, py::object>>& containers) {
  std::vector<std::pair<py::object, tree>> all;
  for (const auto& [container, structure] : containers)
    all.emplace_back(container, tree(structure));
  containers_.swap(all);
}

void plan::serve(py::object lock, py::object make, py::object match) {
  acquire_ = lock.is_none() ? py::object() : py::object(lock.attr("acquire"));
  release_ = lock.is_none() ? py::object() : py::object(lock.attr("release"));
  make_ = std::move(make);
  match_ = std::move(match);
  // In a forked child the step of a thread that is no longer there is over.
  let_go();
  busy_ = spread_ = keyed_right_ = filled_ = false;
  stale_ = true;
}

void plan::restore(std::int64_t iterations, const std::vector<std::int64_t>& counts,
                   const std::vector<std::vector<double>>& memories, std::vector<double> shared) {
  std::vector<member>& members = registry_.members();
  if (counts.size() != members.size() || memories.size() != members.size())
    throw py::value_error("restore: a count and a memory for each parameter");
  for (std::size_t i = 0; i < members.size(); ++i) {
    members[i].count = counts[i];
    members[i].memory = memories[i];
  }
  iterations_ = iterations;
  shared_ = std::move(shared);
  keyed_right_ = false;
}

// ---- The step

bool plan::step(const py::object& grads, const py::object& lr, const py::object& loss,
                const py::object& grad_scale) {
  const held lock(acquire_, release_);
  if (!enter())
    throw std::runtime_error("re-entered: the optimizer is in the middle of a call of this thread");
  const struct within {
    plan& own;
    ~within() {
      own.let_go();
      own.leave();
      if (own.coming_) own.structures_.swap(*own.coming_);
      own.coming_.reset();
    }
  } one{*this};
  if (!barred.empty()) throw std::runtime_error("step: " + barred);
  // Wherever Python runs something may be set: that counts, and all is computed anew; but from the
  // next step on where a schedule sets something each time that it is asked.
  for (int more = 2;; --more) {
    const outcome found = attempt(grads, lr, loss, grad_scale, more == 0);
    if (found != outcome::again) return found == outcome::done;
    let_go();
  }
}

plan::outcome plan::attempt(const py::object& grads, const py::object& lr, const py::object& loss,
                            const py::object& grad_scale, bool last) {
  if (stale_) follow_recipe();
  if (!read_settings()) follow_recipe(), read_settings();
  begin_groups(lr);
  begin_gradients(grads);
  check_containers();
  begin_sets();

  if (shared_.size() != recipe_->shared.size())
    throw py::value_error("shared: a number for each name");
  const bool follows = recipe_->reads_loss || recipe_->totals;
  py::dict shared = recipe_->shared.empty() && !follows ? nothing() : py::dict();
  for (std::size_t k = 0; k < recipe_->shared.size(); ++k)
    shared[recipe_->shared[k]] = py::float_(shared_[k]);
  const auto follow = [&](const py::object& totals) {
    const py::object found =
        recipe_->follow(values_[kinds_[0]], shared, iterations_ + 1, loss, totals);
    if (PyDict_Update(shared.ptr(), found.ptr()) != 0) throw py::error_already_set();
  };
  if (recipe_->reads_loss) follow(py::none());

  double scale = scale_of(grad_scale);
  if (recipe_->measures_norm) {
    const squared_norm found = norm_of_gradients();
    const double length = std::sqrt(found.squares) * scale;
    grad_norm_ = length;
    if (!found.finite && !recipe_->propagates) {
      recipe_->undone(gradients_, active_);
      zero_replaced();
      if (!recipe_->told.is_none()) recipe_->told(false);
      return outcome::undone;
    }
    // As PyTorch. Where there is no limit the norm of finite gradients may be infinite, too.
    const double share = recipe_->limit / (length + 1e-6);
    if (recipe_->limit < std::numeric_limits<double>::infinity() && !(share > 1.0)) scale *= share;
  }

  compute_scalars(scale, shared);
  if (!last && !as_read()) return outcome::again;
  if (recipe_->wanted != 0 && !active_.empty()) {
    const std::vector<py::object> sums = measured();
    if (recipe_->totals) {
      follow(sums.back());
      compute_scalars(scale, shared);
    }
    if (recipe_->adapts) adapt_scalars(sums);
    if (!last && !as_read()) return outcome::again;
  }
  check();
  if (has_copies_) check_masters();
  if (!recipe_->direct.is_none()) direct();
  next_shared_.clear();
  for (const py::object& name : recipe_->shared)
    next_shared_.push_back(shared[name].cast<double>());
  if (has_copies_) start_copies();
  run();
  count();
  zero_replaced();
  if (!recipe_->told.is_none()) recipe_->told(true);
  return outcome::done;
}

// ---- Begin

void plan::follow_recipe() {
  static const auto& settings_name = *new py::object(interned("settings"));
  stale_ = false;  // before Python runs, which may set something
  try {
    recipe_.emplace(make_(), settings_name);
  } catch (...) {
    stale_ = true;
    throw;
  }
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

// The gradients by number, and the members that have one.
void plan::begin_gradients(const py::object& grads) {
  std::vector<member>& members = registry_.members();
  given_.resize(members.size());
  if (grads.is_none()) {
    bool bound = false;
    for (std::size_t i = 0; i < members.size(); ++i) {
      given_[i] = members[i].g;
      bound = bound || !given_[i].is_none();
    }
    if (!bound) throw py::value_error("grads: none given and none bound; pass them, or bind them");
  } else {
    const auto fits = [&](const tree& s) {
      given_.assign(members.size(), py::object());  // a part of the parameters may be all there is
      return s.gather(grads.ptr(), given_);
    };
    if (std::none_of(structures_.begin(), structures_.end(), fits)) {
      auto [list, structure] = match_(grads).cast<std::pair<std::vector<py::object>, py::object>>();
      given_ = std::move(list);
      if (!structure.is_none()) {
        structures_.resize(std::min<std::size_t>(structures_.size(), 3), tree(structure));
        structures_.emplace_back(structure);
      }
    }
  }

  gradients_.clear();
  replaced_.clear();
  std::size_t found = 0;
  bool others = false;
  for (std::size_t i = 0; i < members.size(); ++i) {
    py::object& g = given_[i];
    if (!g || g.is_none()) continue;
    if (found == active_.size()) active_.push_back(members.size());
    others = others || active_[found] != i;
    active_[found++] = i;
    member& m = members[i];
    const bool plain = reinterpret_cast<PyObject*>(Py_TYPE(g.ptr())) == ndarray();
    if (!plain && !py::isinstance<py::array>(g)) g = as_array(m, g);
    if (!recipe_->convert.is_none() &&
        !(py::isinstance<py::array>(g) && m.fits(g, aligned) && goes_with(kind_of(g), m.type))) {
      py::object stands = recipe_->convert(i, g);
      replaced_.emplace_back(std::exchange(g, stands), stands);
    }
    gradients_.push_back(std::move(g));
  }
  if (others || found != active_.size()) keyed_right_ = filled_ = false;
  active_.resize(found);
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
    key own{kinds_[m.group], m.decays, m.count, m.memory};
    std::size_t number = keyed_.size() - 1;  // neighbours mostly share one
    if (keyed_.empty() || keyed_[number].shared != own) {
      number = numbers.emplace(own, keyed_.size()).first->second;
      if (number == keyed_.size()) {
        set_of_scalars s{};
        s.part = call(recipe_->part, py::int_(m.group), py::bool_(m.decays));
        s.f = s.part.attr("f");
        s.names = s.part.attr("names");
        s.adapt = s.part.attr("adapt");
        s.is_cautious = s.part.attr("is_cautious").cast<bool>();
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

// 1/grad_scale: this step's, or the optimizer's.
double plan::scale_of(const py::object& grad_scale) const {
  const py::object& found = grad_scale.is_none() ? recipe_->scale : grad_scale;
  const double scale = number(found);
  if (!(scale > 0 && scale < std::numeric_limits<double>::infinity()))
    throw py::value_error("grad_scale: " + std::to_string(scale) +
                          " is out of range, wanted (0, inf)");
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

// ---- Check

// Checks every array that the step will touch.
void plan::check() {
  if (refill()) return;
  // Arrays that fit take no call of Python, so that what is seen is what is stepped; where one
  // doesn't, Python may run, and all are checked anew.
  if (!fill()) {
    explain();
    if (!fill()) throw py::value_error("params: changed while they were looked over");
  }
  registry_.find_written();
  for (std::size_t k = 0; k < active_.size(); ++k)
    registry_.require_apart(registry_.members()[active_[k]], spans_[k].g);
  require_gradients_apart();
  filled_ = true;
}

// Fills the spans from the arrays as they are now; false where one doesn't fit.
bool plan::fill() {
  filled_ = has_copies_ = false;
  spans_.clear();
  seen_.clear();
  seen_gradients_.clear();
  for (std::size_t k = 0; k < active_.size(); ++k) {
    const member& m = registry_.members()[active_[k]];
    if (!m.fits(m.x, aligned | writeable) || kind_of(m.x) != m.type) return false;
    span a{};
    a.x = stream_of(m.x, m.type);
    a.size = size_of(m.shape);
    a.width = a.x.width;
    a.position = m.position;
    a.chunk = m.chunk;
    a.set = adapted_.empty() ? set_of_[k] : k;
    seen_.emplace_back(m.x, m.shape);
    for (std::size_t s = 0; s < m.keeps.size(); ++s) {
      const kept& beside = m.keeps[s];
      if (!m.fits(beside.array, flags_of(beside)) || kind_of(beside.array) != beside.type)
        return false;
      stream& place = *beside.place(a, s);
      place = stream_of(beside.array, beside.type);
      a.width += place.width;
      seen_.emplace_back(beside.array, m.shape);
    }
    has_copies_ = has_copies_ || a.master.kind != kind::none || a.average.kind != kind::none;
    if (!fill_gradient(a, m, k)) return false;
    seen_gradients_.emplace_back(gradients_[k], m.shape);
    spans_.push_back(a);
  }
  return true;
}

bool plan::fill_gradient(span& a, const member& m, std::size_t k) const {
  const py::object& g = gradients_[k];
  if (!m.fits(g, recipe_->zero_grad ? aligned | writeable : aligned)) return false;
  const std::optional<kind> type = kind_of(g);
  if (!goes_with(type, m.type)) return false;
  a.width -= a.g.width;
  a.g = stream_of(g, *type);
  a.width += a.g.width;
  return true;
}

// Whether the spans are still right. Gradients may be others: those are put in their place.
bool plan::refill() {
  if (!filled_) return false;
  for (const sighting& beside : seen_)
    if (!beside.still()) return false;
  bool others = false;
  for (std::size_t k = 0; k < active_.size(); ++k) {
    if (seen_gradients_[k].still(gradients_[k])) continue;
    filled_ = false;  // until all have been found good
    member& m = registry_.members()[active_[k]];
    if (!fill_gradient(spans_[k], m, k)) return false;
    seen_gradients_[k] = sighting(gradients_[k], m.shape);
    registry_.require_apart(m, spans_[k].g);
    others = true;
  }
  if (others) require_gradients_apart();
  filled_ = true;
  return true;
}

// Gradients that are zeroed may not overlap one another either: one would be zeroed before the
// other is read.
void plan::require_gradients_apart() const {
  if (!recipe_->zero_grad) return;
  std::vector<extent> found;
  for (std::size_t k = 0; k < active_.size(); ++k) {
    const extent a = extent_of(gradients_[k], registry_.members()[active_[k]].labels[1]);
    if (a.first < a.last) found.push_back(a);
  }
  require_apart(found);
}

// Says what is wrong with the first array that doesn't fit; returns where only a gradient's class
// was new, which is then accepted.
void plan::explain() {
  for (std::size_t k = 0; k < active_.size(); ++k) {
    member& m = registry_.members()[active_[k]];
    m.require_unchanged(m.x, m.type, aligned | writeable, m.labels[0]);
    for (std::size_t s = 0; s < m.keeps.size(); ++s) {
      const kept& beside = m.keeps[s];
      m.require_unchanged(beside.array, beside.type, flags_of(beside), m.labels[s + 2]);
    }
    m.require_like(gradients_[k], m.labels[1], "gradient");
    if (recipe_->zero_grad) require_writeable(gradients_[k], m.labels[1]);
    m.gradient_class = py::type::of(gradients_[k]);
  }
}

// Whether the user's containers still have the arrays that are stepped.
void plan::check_containers() {
  const std::vector<member>& members = registry_.members();
  const auto require = [&](std::size_t number, const py::object& there) {
    const member& m = members[number];
    if (there.is(m.x) || !there || there.is_none() || same_memory(m, there.ptr())) return;
    wrong_value(m.labels[0],
                "another array lies there now than the one that is stepped: after W = W - ... or "
                "params[...] = ... the old one trains on, unseen; write into it (W[...] = ...), or "
                "call opt.rebind(params)");
  };
  for (const auto& [container, structure] : containers_) {
    const std::size_t leaves = structure.leaves();
    if (iterations_ < all_watched || leaves <= watched_in_turn) {
      located_.assign(members.size(), py::object());
      structure.locate(container, located_);
      for (std::size_t i = 0; i < located_.size(); ++i) require(i, located_[i]);
    } else {
      for (std::size_t n = 0; n < watched_in_turn; ++n) {
        const auto [number, there] = structure.at(container, next_watched_++ % leaves);
        require(number, there);
      }
    }
  }
}

// Whether a parameter is still what its master was rounded to, at its ends and one place that
// wanders: whoever fills the whole array is noticed.
void plan::check_masters() const {
  for (std::size_t k = 0; k < active_.size(); ++k) {
    const span& a = spans_[k];
    const member& m = registry_.members()[active_[k]];
    if (a.master.kind == kind::none || a.size == 0 || m.count == 0) continue;
    for (const std::ptrdiff_t i :
         {std::ptrdiff_t{0}, a.size - 1, static_cast<std::ptrdiff_t>(iterations_ % a.size)}) {
      std::uint16_t rounded = 0;
      const std::uint16_t there = static_cast<const std::uint16_t*>(a.x.data)[i];
      const stream one{&rounded, a.x.kind, a.x.width};
      storage_of(a.x.kind).close(one, 0, 1, static_cast<const float*>(a.master.data) + i);
      if (rounded == there || is_nan(a.x.kind, there)) continue;
      wrong_value(m.labels[0],
                  std::string("no longer what its master was rounded to: it was written to from "
                              "outside, and the step would undo that; ") +
                      (stateless_ ? "write it into the master, too (master[...] = param)"
                                  : "call opt.refresh(), which takes the master anew from it"));
    }
  }
}

// ---- Measure

squared_norm plan::norm_of_gradients() {
  check();
  if (!recipe_->backend.is_none()) {
    const auto [squares, finite] =
        recipe_->backend.attr("norm")(gradients_).cast<std::pair<double, bool>>();
    return {squares, finite};
  }
  sums_.resize(registry_.all_chunks());
  squared_norm found{};
  freely([&] { found = norm(kernels(), spans_, sums_); });
  return found;
}

// What a step with these scalars would do to each array, and last to all of them together: sums,
// added in the arrays' order.
std::vector<py::object> plan::measured() {
  check();
  std::vector<std::array<double, most_sums>> found(active_.size());
  if (!recipe_->backend.is_none()) {
    const py::object own = recipe_->backend.attr("measure");
    for (std::size_t k = 0; k < active_.size(); ++k)
      found[k] = own(active_[k], gradients_[k], described(k), recipe_->wanted)
                     .cast<std::array<double, most_sums>>();
  } else {
    measurements_.resize(registry_.all_chunks() * most_sums);
    freely([&] { schuss::measure(kernels(), spans_, sets_, recipe_->wanted, measurements_); });
    for (std::size_t k = 0; k < active_.size(); ++k)
      if (spans_[k].size > 0)
        std::copy_n(measurements_.data() + most_sums * spans_[k].chunk, most_sums,
                    found[k].begin());
  }
  std::array<double, most_sums> total = found[0];
  for (std::size_t k = 1; k < found.size(); ++k)
    for (std::size_t s = 0; s < most_sums; ++s) total[s] += found[k][s];
  std::ptrdiff_t elements = 0;
  std::vector<py::object> all;
  // A named tuple of Python's takes four times as long by its own constructor.
  const auto made = [&](const std::array<double, most_sums>& s, std::ptrdiff_t size) {
    const py::tuple fields = py::make_tuple(s[0], s[1], s[2], s[3], s[4], s[5], size);
    auto* const named = reinterpret_cast<PyTypeObject*>(recipe_->sums.ptr());
    PyObject* const one = PyTuple_Type.tp_new(named, py::make_tuple(fields).ptr(), nullptr);
    if (one == nullptr) throw py::error_already_set();
    all.push_back(py::reinterpret_steal<py::object>(one));
  };
  for (std::size_t k = 0; k < found.size(); ++k) {
    elements += spans_[k].size;
    made(found[k], spans_[k].size);
  }
  if (recipe_->totals) made(total, elements);
  return all;
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
      const py::object found = call(s.f, s.own_h, t, memory);
      if (PyDict_Size(found.ptr()) == s.entries) {
        const auto rule = py::reinterpret_borrow<py::dict>(found);
        read_rule(sets_[i], s.names, rule);
        remember(s, rule);
        sets_[i].scale = std::copysign(scale, sets_[i].scale);
        continue;
      }
    }
    const py::object found = call(s.part, values_[kind], t, py::float_(scale), memory);
    const auto member = [&](Py_ssize_t place) { return PyTuple_GET_ITEM(found.ptr(), place); };
    const auto rule = py::reinterpret_borrow<py::dict>(member(0));
    read_part(sets_[i], s.names, rule, py::reinterpret_borrow<py::dict>(member(1)));
    remember(s, rule);
    s.steady = member(2) == Py_True;
    s.entries = PyDict_Size(rule.ptr());
    s.h = values_[kind];
    s.own_h = py::reinterpret_borrow<py::object>(member(3));
  }
  if (!std::exchange(spread_, false)) return;
  for (std::size_t k = 0; k < spans_.size() && k < set_of_.size(); ++k) spans_[k].set = set_of_[k];
}

// What a rule remembers beside the arrays of a set, as it is after the step.
void plan::remember(set_of_scalars& s, const py::dict& rule) const {
  s.next_memory = std::get<3>(s.shared);
  for (std::size_t k = 0; k < s.next_memory.size() && k < recipe_->remembered.size(); ++k) {
    PyObject* const value = PyDict_GetItemWithError(rule.ptr(), recipe_->remembered[k].ptr());
    if (value != nullptr) s.next_memory[k] = number(value);
    if (value == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
  }
}

// From here on each array has a set of its own, with what its sums change.
void plan::adapt_scalars(const std::vector<py::object>& sums) {
  static const auto& decay_rate = *new py::object(interned("decay_rate"));
  static const auto& decay = *new py::object(interned("decay"));
  static const auto& caution = *new py::object(interned("caution"));
  std::vector<scalars> own;
  for (std::size_t k = 0; k < active_.size(); ++k) {
    const set_of_scalars& s = keyed_[set_of_[k]];
    own.push_back(sets_[set_of_[k]]);
    scalars& c = own.back();
    if (!s.adapt.is_none()) {
      py::object found = call(s.adapt, s.own_h, py::int_(std::get<2>(s.shared) + 1), sums[k]);
      // Another rate than the one that the weight decay went by.
      if (PyDict_Contains(found.ptr(), decay_rate.ptr()) == 1) {
        const py::object rate = found.attr("pop")(decay_rate);
        override_stages(c, s.part.attr(decay)(s.own_h, rate));
      }
      override_rule(c, s.names, found);
    }
    if (s.is_cautious) {
      c.agree = number(s.part.attr(caution)(s.own_h, sums[k]));
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

// ---- Run

// Rules for matrices turn gradients into directions in Python, and the kernel then walks along
// them: what a step does to a gradient before the rule has been done there.
void plan::direct() {
  py::list all;
  for (std::size_t k = 0; k < active_.size(); ++k) {
    const set_of_scalars& s = keyed_[set_of_[k]];
    all.append(py::make_tuple(active_[k], gradients_[k], s.own_h, std::get<2>(s.shared) + 1,
                              described(k)));
  }
  const auto found = recipe_->direct(all).cast<std::vector<py::object>>();
  if (adapted_.empty()) {
    for (std::size_t k = 0; k < active_.size(); ++k) adapted_.push_back(sets_[set_of_[k]]);
    spread();
  }
  const scalars idle = idle_scalars(0);
  for (std::size_t k = 0; k < found.size(); ++k) {
    if (found[k].is_none()) continue;
    replaced_.emplace_back(std::exchange(gradients_[k], found[k]), found[k]);
    scalars& c = adapted_[k];
    c.scale = idle.scale;
    c.clip = idle.clip;
    c.l2 = c.l1 = c.zero_grad = 0;
  }
  check();
}

// A master or an average begins as the parameter is at its first step: weights may have been
// loaded into the array since it was registered.
void plan::start_copies() const {
  if (stateless_) return;
  for (std::size_t k = 0; k < active_.size(); ++k) {
    if (registry_.members()[active_[k]].count != 0) continue;
    const span& a = spans_[k];
    for (const stream* copy : {&a.master, &a.average}) {
      if (copy->kind == kind::none) continue;
      if (a.x.kind == copy->kind)
        std::memcpy(copy->data, a.x.data, static_cast<std::size_t>(a.size * a.x.width));
      else
        storage_of(a.x.kind).open(a.x, 0, a.size, static_cast<float*>(copy->data));
    }
  }
}

void plan::run() {
  const std::vector<scalars>& sets = in_use();
  if (!recipe_->backend.is_none()) {
    const py::object own = recipe_->backend.attr("run");
    for (std::size_t k = 0; k < active_.size(); ++k) own(active_[k], gradients_[k], described(k));
    return;
  }
  std::ptrdiff_t elements = 0;
  for (const span& a : spans_) elements += a.size;
  const auto work = [&] { schuss::run(kernels(), spans_, sets); };
  // Without the GIL where that is worth its cost: others may run while many elements are updated.
  if (elements < chunk)
    work();
  else
    freely(work);
}

// The kernels zero what they read: where that stands for a gradient, here is the gradient.
void plan::zero_replaced() const {
  if (!recipe_->zero_grad) return;
  for (const auto& [came, stands] : replaced_) came.attr("fill")(0);
}

// ---- Count

void plan::count() noexcept {
  std::vector<member>& members = registry_.members();
  for (std::size_t k = 0; k < active_.size(); ++k) {
    member& m = members[active_[k]];
    ++m.count;
    const std::vector<double>& next = keyed_[set_of_[k]].next_memory;
    std::copy(next.begin(), next.end(), m.memory.begin());
  }
  for (set_of_scalars& s : keyed_) {
    ++std::get<2>(s.shared);
    std::get<3>(s.shared) = s.next_memory;
  }
  shared_.swap(next_shared_);
  ++iterations_;
}

// ---- A stateless call

void plan::once(py::object x, py::object g, const std::vector<py::object>& keeps,
                std::int64_t finished, std::vector<double> memory, std::vector<double> shared,
                const py::object& lr, const py::object& loss) {
  if (busy_)
    throw std::runtime_error("re-entered: the call is in the middle of one like it of this thread");
  stateless_ = true;
  const struct after {
    registry& own;
    ~after() { own.release(); }
  } one{registry_};
  registry_.replace(std::move(x), std::move(g), keeps, finished, memory);
  filled_ = false;
  if (keyed_.size() == 1) {
    std::get<2>(keyed_[0].shared) = finished;
    std::get<3>(keyed_[0].shared) = std::move(memory);
  }
  iterations_ = finished;
  shared_ = std::move(shared);
  step(py::none(), lr, loss, py::none());
}

// ---- What all parts need

std::vector<scalars>& plan::in_use() { return adapted_.empty() ? sets_ : adapted_; }

// The numbers of an array's set, as the backend in NumPy reads them.
py::tuple plan::described(std::size_t k) {
  const scalars& c = in_use()[spans_[k].set];
  const int count = kernels().rules[c.rule].scalars;
  py::tuple found(1 + stages().size() + static_cast<std::size_t>(count));
  std::size_t next = 0;
  found[next++] = py::int_(c.rule);
  for (const stage& s : stages()) found[next++] = py::float_(c.*s.place);
  for (int i = 0; i < count; ++i) found[next++] = py::float_(c.rule_scalars[i]);
  return found;
}

// Between two steps nothing is held of the gradients.
void plan::let_go() {
  drop(given_);
  drop(gradients_);
  drop(located_);
  std::vector<std::pair<py::object, py::object>>().swap(replaced_);
  adapted_.clear();
}

}  // namespace schuss
