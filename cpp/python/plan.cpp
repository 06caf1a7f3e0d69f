// A step in its order, and what is registered for it.
#include "plan.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <stdexcept>

namespace schuss {

namespace {

// An empty dict that nobody writes to.
py::dict nothing() {
  static const auto& empty = *new py::dict();
  return empty;
}

constexpr char as_they_arrive[] =
    "gradients are arriving: leave opt.arriving() first, which closes the step";

// Fills what a gradient consists of with zeros.
void zero(py::handle g) {
  if (PyTuple_Check(g.ptr()) != 0)
    for (const py::handle piece : g) zero(piece);
  else if (is_rows(g))
    zero(g.attr("values"));
  else if (!g.is_none())
    g.attr("fill")(0);
}

}  // namespace

// ---- Calls

// Between two calls nothing is held of the gradients.
class plan::call_of {
 public:
  call_of(plan& own, const char* what) : own_(own) {
    if (!own_.enter())
      throw std::runtime_error(std::string("re-entered: the ") + what + " of this thread");
    own_.reading_ = true;
  }
  ~call_of() {
    own_.let_go();
    own_.reading_ = false;
    own_.leave();
  }
  call_of(const call_of&) = delete;
  call_of& operator=(const call_of&) = delete;

 private:
  plan& own_;
};

bool plan::enter_alone() {
  if (arriving()) throw std::runtime_error(as_they_arrive);
  return enter();
}

bool plan::enter() {
  if (busy()) return false;
  within_ = PyThread_get_thread_ident();
  return true;
}

void plan::require_idle() {
  if (arriving()) throw std::runtime_error(as_they_arrive);
  if (reading_)
    throw std::runtime_error("re-entered: the optimizer is in the middle of a call of this thread");
}

void plan::require_unbarred() {
  if (arriving()) throw std::runtime_error(as_they_arrive);
  if (!barred.empty()) throw std::runtime_error("step: " + barred);
}

// ---- What is registered

void plan::add(std::vector<std::string> labels, py::object x,
               const std::vector<std::pair<std::string, py::object>>& keeps, py::object g,
               std::size_t group, bool decays, std::vector<double> memory, int rule_case,
               std::ptrdiff_t position) {
  require_idle();
  const std::size_t before = registry_.members().size();
  const bool bound_rows = is_rows(g);
  registry_.add(std::move(labels), std::move(x), keeps, std::move(g), group, decays,
                std::move(memory), rule_case, position);
  let_go();
  keyed_right_ = filled_ = false;
  if (!bound_rows) return;
  try {
    source::explain(registry_.members().back(), registry_.members().back().g, false, aligned);
  } catch (...) {
    registry_.keep_first(before);
    throw;
  }
}

void plan::keep_first(std::size_t size) {
  require_idle();
  registry_.keep_first(size);
  let_go();
  keyed_right_ = filled_ = false;
}

void plan::rebind(const std::vector<py::object>& arrays) {
  require_idle();
  if (arrays.size() != registry_.members().size())
    throw py::value_error("params: one array for each parameter");
  filled_ = false;
  registry_.rebind(arrays);
}

void plan::require_disjoint() {
  require_idle();
  registry_.require_disjoint();
}

void plan::expect(const std::vector<py::object>& structures) {
  require_idle();
  std::vector<tree> all;
  for (const py::object& s : structures) all.emplace_back(s);
  structures_.swap(all);
}

py::object plan::gather(const py::object& values) {
  const struct walk {
    bool& reading;
    bool before;
    ~walk() { reading = before; }
  } one{reading_, std::exchange(reading_, true)};
  std::vector<py::object> found(registry_.members().size());
  if (structures_.empty() || !structures_.front().gather(values.ptr(), found)) return py::none();
  return py::cast(found);
}

void plan::expect_more(const py::object& structure) {
  require_idle();
  drop_from(structures_, 1);
  structures_.at(0).append(tree(structure));
}

void plan::watch_more(const py::object& container, const py::object& structure) {
  require_idle();
  containers_.emplace_back(container, tree(structure));
  watched_.clear();
}

void plan::watch(const std::vector<std::pair<py::object, py::object>>& containers) {
  require_idle();
  std::vector<std::pair<py::object, tree>> all;
  for (const auto& [container, structure] : containers)
    all.emplace_back(container, tree(structure));
  containers_.swap(all);
  watched_.clear();
}

void plan::serve(py::object lock, py::object make, py::object match) {
  acquire_ = lock.is_none() ? py::object() : py::object(lock.attr("acquire"));
  release_ = lock.is_none() ? py::object() : py::object(lock.attr("release"));
  make_ = std::move(make);
  match_ = std::move(match);
  // In a forked child calls of threads that are no longer there are over; one that forked goes on.
  if (busy() && within_ == PyThread_get_thread_ident()) return;
  let_go();
  leave();
  reading_ = spread_ = keyed_right_ = filled_ = false;
  stale_ = true;
}

void plan::restore(std::int64_t iterations, const std::vector<std::int64_t>& counts,
                   const std::vector<std::vector<double>>& memories, std::vector<double> shared,
                   std::optional<double> norm) {
  require_idle();
  std::vector<member>& members = registry_.members();
  if (counts.size() != members.size() || memories.size() != members.size())
    throw py::value_error("restore: a count and a memory for each parameter");
  for (std::size_t i = 0; i < members.size(); ++i) {
    members[i].count = counts[i];
    members[i].memory = memories[i];
  }
  iterations_ = iterations;
  shared_ = std::move(shared);
  last_norm_ = norm;
  keyed_right_ = false;
}

// ---- The step

bool plan::step(const request& asked) {
  const held lock(acquire_, release_);
  const call_of one(*this, "optimizer is in the middle of a call");
  return take(asked);
}

bool plan::take(const request& asked) {
  return repeated([&](bool last) { return attempt(asked, last); });
}

// Wherever Python runs something may be set: that counts, and all is computed anew; but from the
// next step on where a schedule sets something each time that it is asked.
template <class Attempt> bool plan::repeated(const Attempt& attempt_once) {
  if (!make_) throw std::runtime_error("step: nobody is served");
  require_unbarred();
  try {
    for (int more = 2;; --more) {
      const outcome found = attempt_once(more == 0);
      if (found != outcome::again) return found == outcome::done;
      let_go();
    }
  } catch (...) {
    stale_ = true;  // of what was begun nothing counts
    throw;
  }
}

// Settings, and gradients in order; what the step follows of the loss.
void plan::begin(const request& asked, py::dict& shared) {
  if (stale_) follow_recipe();
  if (!read_settings()) follow_recipe(), read_settings();
  begin_groups(asked.lr);
  reports_ = asked.reports;
  if (asked.alone)
    begin_alone(*asked.alone, asked.grads);
  else if (asked.opens)
    expect_gradients();
  else
    begin_gradients(asked);
  check_containers();
  begin_sets();

  if (shared_.size() != recipe_->shared.size())
    throw py::value_error("shared: a number for each name");
  const bool follows = recipe_->reads_loss || recipe_->totals;
  shared = recipe_->shared.empty() && !follows ? nothing() : py::dict();
  for (std::size_t k = 0; k < recipe_->shared.size(); ++k)
    shared[recipe_->shared[k]] = py::float_(shared_[k]);
  if (recipe_->reads_loss) follow(shared, asked.loss, stepping_groups({}));
}

void plan::follow(py::dict& shared, const py::object& loss, const py::object& groups) const {
  const py::object found = recipe_->follow(groups, shared, iterations_ + 1, loss);
  if (PyDict_Update(shared.ptr(), found.ptr()) != 0) throw py::error_already_set();
}

// What is shared becomes this by the step.
void plan::read_shared(const py::dict& shared) {
  next_shared_.clear();
  for (const py::object& name : recipe_->shared) next_shared_.push_back(number(shared[name]));
}

plan::outcome plan::attempt(const request& asked, bool last) {
  py::dict shared;
  begin(asked, shared);
  double scale = scale_of(asked.grad_scale), length = 0;
  const bool own_scale = asked.grad_scale.is_none();
  if (recipe_->measures_norm && !clip(scale, length)) return leave_undone(py::none(), own_scale);

  compute_scalars(scale, shared);
  spread_rows();
  if (!last && !as_read()) return outcome::again;
  if (!recipe_->propagates)
    if (const std::size_t k = overflowing(length); k < active_.size())
      return leave_undone(py::int_(k), own_scale);
  if (registry_.factored()) factor();
  if (recipe_->wanted != 0 && !active_.empty()) {
    const std::vector<sums_of_array> sums = measured();
    if (recipe_->totals) {
      follow(shared, asked.loss, stepping_groups(sums));
      compute_scalars(scale, shared);
    }
    if (recipe_->adapts) adapt_scalars(sums);
    if (!last && !as_read()) return outcome::again;
  }
  read_shared(shared);
  carry_out();
  count();
  zero_replaced();
  if (own_scale && !recipe_->told.is_none()) recipe_->told(true);
  return outcome::done;
}

// What is left of a step whose scalars are known: up to the last check Python may run.
void plan::carry_out() {
  check();
  if (!arriving_) require_unbarred();
  if (has_copies_) check_masters();
  if (!recipe_->whole.is_none() && !arriving_) {  // the last that may raise, in any process
    recipe_->whole.attr("commit")(numbers());
    check();  // Python has run; what raises now ends the job
  }
  if (!recipe_->direct.is_none()) direct();
  require_rows_as_spread();
  if (has_copies_) start_copies();
  if (!recipe_->backend.is_none()) compute_in_python();
  prepare_run();
  require_copyable();
  // From here on no Python runs and nothing can fail: the step is whole, or there is none.
  if (recipe_->backend.is_none()) run();
  for (const copying& c : copies_) std::memcpy(c.to, c.from, c.bytes);
  count_rows();
}

// ---- A step as its gradients arrive

void plan::open(const request& asked, const py::object& before, const py::object& arrival) {
  const held lock(acquire_, release_);
  const call_of one(*this, "optimizer is in the middle of a call");
  const std::size_t size = registry_.members().size();
  std::vector<std::size_t> arrived;
  std::vector<bool> has_arrived(size);
  arrived.reserve(size);
  py::object whose = py::weakref(arrival);
  repeated([&](bool last) {
    py::dict shared;
    begin(asked, shared);
    double scale = opened_raw_ = scale_of(asked.grad_scale);
    if (!before.is_none()) scale *= share_within(recipe_->limit, number(before));
    compute_scalars(scale, shared);
    if (!last && !as_read()) return outcome::again;
    read_shared(shared);
    if (!recipe_->whole.is_none()) {  // before anything is done, in any process
      check_masters();
      recipe_->whole.attr("open")(numbers());
    }
    registry_.find_written();
    opened_scale_ = scale;
    opened_sets_ = set_of_;
    arrived_norms_.assign(active_.size(), scaled_norm{0, 0, true});
    return outcome::done;
  });
  arrived_.swap(arrived);
  has_arrived_.swap(has_arrived);
  if (reports_) report_.emplace();
  std::swap(arrival_, whose);
  arriving_ = true;
}

void plan::arrive(std::size_t number_of_it, const py::object& g,
                  const std::vector<double>& weights) {
  const held lock(acquire_, release_);
  const call_of one(*this, "optimizer is in the middle of a call");
  if (!arriving_) throw std::runtime_error("arriving: the step is closed");
  const member& m = registry_.members().at(number_of_it);
  if (has_arrived_[number_of_it])
    wrong_value(m.labels[1], "came already; each parameter steps once");
  if (g.is_none()) return;
  gradients_.clear();
  replaced_.clear();
  active_ = {number_of_it};
  weights_ = weights;
  begin_gradient(number_of_it, g);
  set_of_ = {opened_sets_[number_of_it]};
  adapted_.clear();
  sets_.resize(keyed_.size());
  filled_ = false;
  double scale = opened_scale_, length = 0;
  if (recipe_->measures_norm) {
    clip(scale, length);
    arrived_norms_[number_of_it] = norm_;
  }
  spread_scales();
  spread_rows();
  if (registry_.factored()) factor();
  if (recipe_->wanted != 0) adapt_scalars(measured());
  carry_out();
  has_arrived_[number_of_it] = true;
  arrived_.push_back(number_of_it);
  zero_replaced();
}

// Whether a step is open; one that nobody holds, since an interrupt fell where it began or ended,
// is closed.
bool plan::arriving() {
  if (arriving_ && arrival_().is_none()) end_arrival(true);
  return arriving_;
}

void plan::close(const py::object& arrival, bool failed) {
  const held lock(acquire_, release_);
  const call_of one(*this, "optimizer is in the middle of a call");
  if (arriving_ && arrival_().is(arrival)) end_arrival(failed);
}

void plan::end_arrival(bool failed) {
  arriving_ = false;
  if (failed && arrived_.empty()) return;
  active_ = arrived_;
  std::sort(active_.begin(), active_.end());
  set_of_.clear();
  for (const std::size_t i : active_) set_of_.push_back(opened_sets_[i]);
  if (recipe_->measures_norm) {
    std::vector<scaled_norm> norms;
    for (const std::size_t i : active_) norms.push_back(arrived_norms_[i]);
    const scaled_norm all = added(norms);
    grad_norm_ = stepped_norm_ = std::ldexp(std::sqrt(all.squares) * opened_raw_, all.exponent);
  }
  count();
  keyed_right_ = filled_ = false;
}

// A step whose gradients are not finite, or of which one overflows where it is scaled, if that has
// a number.
plan::outcome plan::leave_undone(const py::object& overflowing, bool own_scale) {
  recipe_->undone(gradients_, active_, overflowing, weights_);
  if (!recipe_->backend.is_none()) recipe_->backend.attr("given").attr("clear")();
  zero_replaced();
  if (own_scale && !recipe_->told.is_none()) recipe_->told(false);
  return outcome::undone;
}

// ---- Run

// Rules for matrices turn gradients into directions in Python, and the kernel then walks along
// them: what a step does to a gradient before the rule has been done there.
void plan::direct() {
  py::list all;
  for (std::size_t k = 0; k < active_.size(); ++k) {
    const set_of_scalars& s = keyed_[set_of_[k]];
    all.append(py::make_tuple(active_[k], as_one(k), s.own_h, std::get<2>(s.shared) + 1,
                              described(spans_[k].set)));
  }
  auto [found, becomes] =
      recipe_->direct(all).cast<std::pair<std::vector<py::object>, arrays_and_values>>();
  computed_ = std::move(becomes);
  if (found.size() != active_.size()) throw py::value_error("direct: one for each gradient");
  if (adapted_.empty()) {
    for (std::size_t k = 0; k < active_.size(); ++k) adapted_.push_back(sets_[set_of_[k]]);
    spread();
  }
  const scalars idle = idle_scalars(0);
  for (std::size_t k = 0; k < found.size(); ++k) {
    if (found[k].is_none()) continue;
    replaced_.emplace_back(std::exchange(gradients_[k], found[k]), found[k]);
    if (k < sources_.size()) sources_[k].forget();
    if (k < row_factors_.size()) row_factors_[k].clear();
    filled_ = taken_ = false;
    scalars& c = adapted_[k];
    c.scale = idle.scale;
    c.clip = idle.clip;
    c.l2 = c.l1 = c.zero_grad = 0;
  }
  check();
}

// A gradient as one array, for Python: a sum is written to one.
py::object plan::as_one(std::size_t k) {
  if (spans_[k].rows != nullptr) return gradients_[k];
  if (spans_[k].g.kind != kind::sum) {  // an array, or the only piece that isn't None
    if (!has_pieces(gradients_[k])) return gradients_[k];
    for (const py::handle piece : gradients_[k])
      if (!piece.is_none()) return py::reinterpret_borrow<py::object>(piece);
  }
  static const auto& numpy = *new py::module_(py::module_::import("numpy"));
  const member& m = registry_.members()[active_[k]];
  const char* const computing = m.type == kind::float64 ? "float64" : "float32";
  py::object found = numpy.attr("empty_like")(m.x, py::dtype(computing), py::arg("subok") = false);
  check();  // Python may have run
  const span& a = spans_[k];
  std::vector<span> all(1);
  all[0].x = stream_of(found, m.type == kind::float64 ? kind::float64 : kind::float32);
  all[0].g = a.g;
  all[0].size = all[0].row_size = a.size;
  all[0].width = all[0].x.width + a.g.width;
  freely([&] { schuss::add(kernels(), all); });
  return found;
}

// A master or an average begins as the parameter is at its first step: weights may have been
// loaded into the array since it was registered.
void plan::start_copies() const {
  if (stateless_) return;
  for (std::size_t k = 0; k < active_.size(); ++k) {
    if (registry_.members()[active_[k]].count != 0) continue;
    const span& a = spans_[k];
    const std::ptrdiff_t size = size_of(registry_.members()[active_[k]].shape);
    for (const stream* copy : {&a.master, &a.average}) {
      if (copy->kind == kind::none) continue;
      if (copy->kind == kind::remainder)
        std::memset(copy->data, 0, static_cast<std::size_t>(size * copy->width));
      else if (a.x.kind == copy->kind)
        std::memcpy(copy->data, a.x.data, static_cast<std::size_t>(size * a.x.width));
      else
        kernels().convert(a.x, *copy, size);
    }
  }
}

// The backend in NumPy, which has the gradients of this step.
const py::object& plan::backend() {
  const py::object& own = recipe_->backend;
  if (taken_) return own;
  const bool has_pieces = !weights_.empty();
  own.attr("take")(active_, gradients_, has_pieces ? py::cast(weights_) : py::object(py::none()));
  for (std::size_t k = 0; k < row_factors_.size(); ++k)
    if (!row_factors_[k].empty())
      own.attr("clip")(active_[k],
                       py::array_t<double>(static_cast<py::ssize_t>(row_factors_[k].size()),
                                           row_factors_[k].data()));
  taken_ = true;
  return own;
}

// It computes in arrays of its own.
void plan::compute_in_python() {
  const py::object own = backend().attr("run");
  for (std::size_t k = 0; k < active_.size(); ++k) {
    auto becomes =
        own(active_[k], described(spans_[k].set), row_sets(k), reports_).cast<arrays_and_values>();
    std::move(becomes.begin(), becomes.end(), std::back_inserter(computed_));
  }
}

// The sets of an array's rows for the backend: each with the places of its rows among those that
// step; None where all have the array's.
py::object plan::row_sets(std::size_t k) {
  if (k >= row_steps_.size() || row_steps_[k] == nullptr) return py::none();
  std::map<std::size_t, std::vector<std::int64_t>> places;
  const std::vector<std::size_t>& sets = sources_[k].sets;
  for (std::size_t row = 0; row < sets.size(); ++row)
    places[sets[row]].push_back(static_cast<std::int64_t>(row));
  py::list found;
  for (const auto& [set, rows] : places)
    found.append(py::make_tuple(
        described(set),
        py::array_t<std::int64_t>(static_cast<py::ssize_t>(rows.size()), rows.data())));
  return found;
}

// What Python has computed lies as the arrays do that it is for, which can be written to.
void plan::require_copyable() {
  copies_.clear();
  for (const auto& [array, value] : computed_) {
    require_writeable(array, "state");
    if (!has_shape(value, shape_of(array)) ||
        descriptor(value)->type_num != descriptor(array)->type_num ||
        (fields(value)->flags & fields(array)->flags & (c_order | f_order)) == 0)
      throw py::value_error("step: " + description(value) + " where " + description(array) +
                            " is wanted");
    copies_.push_back(
        {fields(array)->data, fields(value)->data, static_cast<std::size_t>(array.nbytes())});
  }
  if (!recipe_->backend.is_none()) {  // whose Python may have changed what is counted of rows
    const auto still = [](const sighting& a) { return a.still(); };
    if (registry_.counts_rows() && !std::all_of(seen_.begin(), seen_.end(), still))
      throw py::value_error("state: changed while it was stepped");
    return;
  }
  for (std::size_t k = 0; k < factors_.size(); ++k) {
    const factors& f = factors_[k];
    if (spans_[k].size == 0 || spans_[k].row.kind == kind::none) continue;
    copies_.push_back({spans_[k].row.data, f.row.data(), f.row.size()});
    copies_.push_back({spans_[k].column.data, f.column.data(), f.column.size()});
  }
}

// Room for what the run writes beside the arrays.
void plan::prepare_run() {
  joined_.reserve(spans_.size());
  if (!reports_) return;
  if (!arriving_) report_.emplace();
  report_->reserve(report_->size() + active_.size());
  if (!recipe_->backend.is_none()) {
    const py::object own = recipe_->backend.attr("report");
    for (const std::size_t i : active_) report_->emplace_back(i, own(i).cast<reported_sums>());
    return;
  }
  report_sums_.resize(static_cast<std::size_t>(chunks_) * most_reports);
  for (span& a : spans_) a.report = report_sums_.data() + most_reports * a.chunk;
}

void plan::run() {
  const std::vector<scalars>& sets = in_use();
  std::ptrdiff_t elements = 0;
  for (const span& a : spans_) elements += a.size;
  const std::vector<span>& all = reports_ || !join(spans_, joined_) ? spans_ : joined_;
  const auto work = [&] { schuss::run(kernels(), all, sets); };
  // Without the GIL where that is worth its cost: others may run while many elements are updated.
  if (elements < chunk)
    work();
  else
    freely(work);
  if (!reports_) return;
  for (span& a : spans_) a.report = nullptr;
  if (!recipe_->whole.is_none()) {
    const auto found = of_whole<reported_sums>(report_sums_);
    for (std::size_t k = 0; k < spans_.size(); ++k) report_->emplace_back(active_[k], found.at(k));
    return;
  }
  for (std::size_t k = 0; k < spans_.size(); ++k) {
    double* const sums = report_sums_.data() + most_reports * spans_[k].chunk;
    reported_sums found{};
    if (spans_[k].size > 0) {
      fold(spans_[k], sums, most_reports);
      std::copy_n(sums, most_reports, found.begin());
    }
    report_->emplace_back(active_[k], found);
  }
}

// The kernels zero what they read: where that stands for a gradient, here is the gradient.
void plan::zero_replaced() const {
  if (!recipe_->zero_grad) return;
  for (const auto& [came, stands] : replaced_) zero(came);
}

// ---- Count

// What is counted of rows, which is a part of their state: how many steps each has done, or after
// how many of the array the last one was.
void plan::count_rows() noexcept {
  for (std::size_t k = 0; k < row_steps_.size(); ++k) {
    if (row_steps_[k] == nullptr) continue;
    const std::int64_t next = registry_.members()[active_[k]].count + 1;
    for (const std::ptrdiff_t row : sources_[k].numbers)
      row_steps_[k][row] = recipe_->counts_rows ? row_steps_[k][row] + 1 : next;
  }
}

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
  if (recipe_->measures_norm) last_norm_ = stepped_norm_;
  if (!alone_) ++iterations_;
}

// ---- One member alone

bool plan::alone(const py::object& owner, std::size_t number, const py::object& x,
                 const py::object& g, const py::object& lr, const py::object& grad_scale,
                 const py::object& finished) {
  static const auto& name_of_x = *new py::object(interned("x"));
  const held lock(acquire_, release_);
  const call_of one(*this, "optimizer is in the middle of a call");
  member& m = registry_.members().at(number);
  alone_ = stateless_ = true;
  if (!x.is(m.x)) {
    filled_ = false;  // which looks at the one before
    registry_.rebind_one(m, x);
    if (PyObject_SetAttr(owner.ptr(), name_of_x.ptr(), x.ptr()) != 0) throw py::error_already_set();
  }
  struct after {
    std::int64_t& count;
    std::int64_t before;
    bool done = false;
    ~after() {
      if (!done) count = before;
    }
  } own{m.count, m.count};
  if (!finished.is_none()) m.count = finished.cast<std::int64_t>();
  own.done = take({g, lr, py::none(), grad_scale, py::none(), {}, false, false, number});
  return own.done;
}

void plan::set_iterations(std::int64_t n) {
  require_idle();
  iterations_ = n;
}

void plan::replace_by_last(std::size_t number) {
  require_idle();
  registry_.replace_by_last(number);
  let_go();
  keyed_right_ = filled_ = false;
}

void plan::set_count(std::size_t number, std::int64_t finished, std::vector<double> memory) {
  require_idle();
  member& m = registry_.members().at(number);
  if (memory.size() != m.memory.size()) throw py::value_error("memory: as many as registered");
  m.count = finished;
  m.memory = std::move(memory);
  keyed_right_ = false;
}

// ---- Gradients for others to step by

py::object plan::examined(const request& asked) {
  const held lock(acquire_, release_);
  const call_of one(*this, "optimizer is in the middle of a call");
  require_unbarred();
  if (stale_ || !read_settings()) follow_recipe(), read_settings();
  begin_groups(py::none());
  if (asked.alone) {
    begin_alone(*asked.alone, asked.grads);
  } else {
    begin_gradients(asked);
    check_containers();
    ++iterations_;  // by which it goes which of these are looked into
  }
  begin_sets();
  check();
  if (asked.alone) return gradients_.front();
  py::list found(registry_.members().size());
  for (std::size_t i = 0; i < found.size(); ++i) found[i] = py::none();
  for (std::size_t k = 0; k < active_.size(); ++k) found[active_[k]] = gradients_[k];
  return std::move(found);
}

// ---- A stateless call

void plan::once(py::object x, py::object g, const std::vector<py::object>& keeps,
                std::int64_t finished, std::vector<double> memory, std::vector<double> shared,
                const py::object& lr, const py::object& loss) {
  const call_of within(*this, "call is in the middle of one like it");
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
  take({py::none(), lr, loss, py::none()});
}

// ---- What all parts need

std::vector<scalars>& plan::in_use() { return adapted_.empty() ? sets_ : adapted_; }

// Those of all sets, for others to compare.
py::array plan::numbers() {
  std::vector<double> found;
  for (const scalars& c : in_use()) {
    found.push_back(c.rule);
    for (const stage& s : stages()) found.push_back(c.*s.place);
    found.insert(found.end(), c.rule_scalars, c.rule_scalars + kernels().rules[c.rule].scalars);
  }
  return as_table(found, 1);
}

// The numbers of a set, as the backend in NumPy reads them.
py::tuple plan::described(std::size_t set) {
  const scalars& c = in_use()[set];
  const int count = kernels().rules[c.rule].scalars;
  py::tuple found(1 + stages().size() + static_cast<std::size_t>(count));
  std::size_t next = 0;
  found[next++] = py::int_(c.rule);
  for (const stage& s : stages()) found[next++] = py::float_(c.*s.place);
  for (int i = 0; i < count; ++i) found[next++] = py::float_(c.rule_scalars[i]);
  return found;
}

void plan::let_go() {
  drop(given_);
  drop(gradients_);
  std::vector<std::pair<py::object, py::object>>().swap(replaced_);
  arrays_and_values().swap(computed_);
  adapted_.clear();
  weights_.clear(), scales_.clear(), row_factors_.clear();
  taken_ = false;
  for (source& s : sources_) {
    if (!s.is_read()) continue;
    s.forget();
    filled_ = false;
  }
}

}  // namespace schuss
