// A step in its order, and what is registered for it.
#include "plan.hpp"

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

bool plan::enter() {
  if (busy()) return false;
  within_ = PyThread_get_thread_ident();
  return true;
}

void plan::require_idle() const {
  if (reading_)
    throw std::runtime_error("re-entered: the optimizer is in the middle of a call of this thread");
}

void plan::require_unbarred() const {
  if (!barred.empty()) throw std::runtime_error("step: " + barred);
}

// ---- What is registered

void plan::add(std::vector<std::string> labels, py::object x,
               const std::vector<std::pair<std::string, py::object>>& keeps, py::object g,
               std::size_t group, bool decays, std::vector<double> memory, int rule_case) {
  require_idle();
  registry_.add(std::move(labels), std::move(x), keeps, std::move(g), group, decays,
                std::move(memory), rule_case);
  let_go();
  keyed_right_ = filled_ = false;
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
                   const std::vector<std::vector<double>>& memories, std::vector<double> shared) {
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
  keyed_right_ = false;
}

// ---- The step

bool plan::step(const py::object& grads, const py::object& lr, const py::object& loss,
                const py::object& grad_scale) {
  const held lock(acquire_, release_);
  const call_of one(*this, "optimizer is in the middle of a call");
  return take(grads, lr, loss, grad_scale);
}

bool plan::take(const py::object& grads, const py::object& lr, const py::object& loss,
                const py::object& grad_scale) {
  if (!make_) throw std::runtime_error("step: nobody is served");
  require_unbarred();
  // Wherever Python runs something may be set: that counts, and all is computed anew; but from the
  // next step on where a schedule sets something each time that it is asked.
  try {
    for (int more = 2;; --more) {
      const outcome found = attempt(grads, lr, loss, grad_scale, more == 0);
      if (found != outcome::again) return found == outcome::done;
      let_go();
    }
  } catch (...) {
    stale_ = true;  // of what was begun nothing counts
    throw;
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
  const auto follow = [&](const py::object& groups) {
    const py::object found = recipe_->follow(groups, shared, iterations_ + 1, loss);
    if (PyDict_Update(shared.ptr(), found.ptr()) != 0) throw py::error_already_set();
  };
  if (recipe_->reads_loss) follow(stepping_groups({}));

  double scale = scale_of(grad_scale), length = 0;
  if (recipe_->measures_norm) {
    const scaled_norm found = norm_of_gradients();
    length = std::ldexp(std::sqrt(found.squares) * scale, found.exponent);
    grad_norm_ = length;
    if (!found.finite && !recipe_->propagates)
      return leave_undone(py::none(), grad_scale.is_none());
    // As PyTorch. Where there is no limit the norm of finite gradients may be infinite, too.
    constexpr double inf = std::numeric_limits<double>::infinity();
    const double limit = recipe_->limit, share = limit / (length + 1e-6);
    if (limit < inf && found.finite && length == inf) {  // though limit/length is a number
      scale = std::ldexp(limit / std::sqrt(found.squares), -found.exponent);
      length = limit;
    } else if (limit < inf && !(share > 1.0)) {
      scale *= share;
      length *= share;
    }
  }

  compute_scalars(scale, shared);
  if (!last && !as_read()) return outcome::again;
  if (!recipe_->propagates)
    if (const std::size_t k = overflowing(length); k < active_.size())
      return leave_undone(py::int_(k), grad_scale.is_none());
  if (registry_.factored()) factor();
  if (recipe_->wanted != 0 && !active_.empty()) {
    const std::vector<sums_of_array> sums = measured();
    if (recipe_->totals) {
      follow(stepping_groups(sums));
      compute_scalars(scale, shared);
    }
    if (recipe_->adapts) adapt_scalars(sums);
    if (!last && !as_read()) return outcome::again;
  }
  next_shared_.clear();
  for (const py::object& name : recipe_->shared) next_shared_.push_back(number(shared[name]));
  check();
  require_unbarred();
  if (has_copies_) check_masters();
  if (!recipe_->direct.is_none()) direct();
  if (has_copies_) start_copies();
  if (!recipe_->backend.is_none()) compute_in_python();
  require_copyable();
  // From here on no Python runs and nothing can fail: the step is whole, or there is none.
  if (recipe_->backend.is_none()) run();
  for (const copying& c : copies_) std::memcpy(c.to, c.from, c.bytes);
  count();
  zero_replaced();
  if (grad_scale.is_none() && !recipe_->told.is_none()) recipe_->told(true);
  return outcome::done;
}

// A step whose gradients are not finite, or of which one overflows where it is scaled, if that has
// a number.
plan::outcome plan::leave_undone(const py::object& overflowing, bool own_scale) {
  recipe_->undone(gradients_, active_, overflowing);
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
    all.append(py::make_tuple(active_[k], gradients_[k], s.own_h, std::get<2>(s.shared) + 1,
                              described(k)));
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
      if (copy->kind == kind::remainder)
        std::memset(copy->data, 0, static_cast<std::size_t>(a.size * copy->width));
      else if (a.x.kind == copy->kind)
        std::memcpy(copy->data, a.x.data, static_cast<std::size_t>(a.size * a.x.width));
      else
        kernels().convert(a.x, *copy, a.size);
    }
  }
}

// The backend in NumPy computes in arrays of its own.
void plan::compute_in_python() {
  const py::object own = recipe_->backend.attr("run");
  for (std::size_t k = 0; k < active_.size(); ++k) {
    auto becomes = own(active_[k], gradients_[k], described(k)).cast<arrays_and_values>();
    std::move(becomes.begin(), becomes.end(), std::back_inserter(computed_));
  }
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
  if (!recipe_->backend.is_none()) return;
  for (std::size_t k = 0; k < factors_.size(); ++k) {
    const factors& f = factors_[k];
    if (spans_[k].size == 0 || spans_[k].row.kind == kind::none) continue;
    copies_.push_back({spans_[k].row.data, f.row.data(), f.row.size()});
    copies_.push_back({spans_[k].column.data, f.column.data(), f.column.size()});
  }
}

void plan::run() {
  const std::vector<scalars>& sets = in_use();
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
  take(py::none(), lr, loss, py::none());
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

void plan::let_go() {
  drop(given_);
  drop(gradients_);
  std::vector<std::pair<py::object, py::object>>().swap(replaced_);
  arrays_and_values().swap(computed_);
  adapted_.clear();
}

}  // namespace schuss
