// One step: begin, check, measure, scalars, run, count. All steps take this way, whoever asks for
// them: optimizers, stateless calls, rules for matrices, with kernels or in NumPy.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <optional>

#include "../core/factors.hpp"
#include "gradient.hpp"
#include "recipe.hpp"
#include "tree.hpp"

namespace schuss {

using sums_of_array = std::array<double, most_sums>;
using arrays_and_values = std::vector<std::pair<py::array, py::array>>;

// The sums of squares that a step reports of an array: of g, u and x.
using reported_sums = std::array<double, most_reports>;

// What a step is asked for.
struct request {
  py::object grads, lr, loss, grad_scale;
  py::object pieces = py::none();  // structures in place of grads, with a weight for each
  std::vector<double> weights = {};
  bool reports = false;
  bool opens = false;                     // gradients are still to come
  std::optional<std::size_t> alone = {};  // the only member, of which grads is the gradient
};

// Sums of chunks for Python, several side by side.
inline py::array as_table(const std::vector<double>& sums, std::size_t several) {
  const auto columns = static_cast<py::ssize_t>(several);
  const shape_t shape{static_cast<py::ssize_t>(sums.size()) / columns, columns};
  return py::array_t<double>(shape, sums.data());
}

// Bytes that are to be copied once nothing can fail any more.
struct copying {
  void* to;
  const void* from;
  std::size_t bytes;
};

// While a call of a plan's own is under way, Python may run at many places, and do anything: what
// such a call reads changes by that call alone.
class plan {
 public:
  // ---- What is registered. These raise within a step, or a walk through structures.

  void add(std::vector<std::string> labels, py::object x,
           const std::vector<std::pair<std::string, py::object>>& keeps, py::object g,
           std::size_t group, bool decays, std::vector<double> memory, int rule_case,
           std::ptrdiff_t position);
  void keep_first(std::size_t size);
  void rebind(const std::vector<py::object>& arrays);
  void require_disjoint();

  // The structures in which gradients come, the registered one first, and where the user keeps the
  // parameters: containers with the structure of what lies in them.
  void expect(const std::vector<py::object>& structures);
  void expect_more(const py::object& structure);  // behind the groups that there are
  void watch(const std::vector<std::pair<py::object, py::object>>& containers);
  void watch_more(const py::object& container, const py::object& structure);

  // Arrays in the parameters' order; None where they come in another structure than those.
  py::object gather(const py::object& values);

  // ---- A step

  // Who steps, and where: `make` returns a recipe, `match` gradients in a structure that is not
  // known yet, in order, and that structure.
  void serve(py::object lock, py::object make, py::object match);
  bool step(const request& asked);
  held hold() const { return held(acquire_, release_); }  // between two steps of other threads

  // The same as its gradients arrive: `open`, then `arrive` for each of them, and `close`, at which
  // counters move, but where it failed before the first one. Settings and scalars are those at the
  // opening. `before` is the norm to clip by, or None.
  // It is of an object, `arrival`, and closed where that isn't there any more.
  void open(const request& asked, const py::object& before, const py::object& arrival);
  void arrive(std::size_t number, const py::object& g, const std::vector<double>& weights);
  void close(const py::object& arrival, bool failed);
  bool arriving();
  const std::vector<std::size_t>& arrived() const { return arrived_; }

  // Of the last step that was asked for it: each array's number with its sums.
  using report_of_arrays = std::vector<std::pair<std::size_t, reported_sums>>;
  const std::optional<report_of_arrays>& report() const { return report_; }

  // One step of one member alone, whose array may be another one than before, and after `finished`
  // steps, where that isn't None. The clock that schedules go by is the caller's: `iterations`.
  // `owner.x` follows the array.
  bool alone(const py::object& owner, std::size_t number, const py::object& x, const py::object& g,
             const py::object& lr, const py::object& grad_scale, const py::object& finished);
  void set_iterations(std::int64_t n);

  // The gradients of a step, which is not taken: by number, None where there is none. Raises what
  // `step` would say of them. Of `alone`, where that is asked, one.
  py::object examined(const request& asked);

  // In the place of a member the one that was added last, after the same steps.
  void replace_by_last(std::size_t number);
  void set_count(std::size_t number, std::int64_t finished, std::vector<double> memory);

  // Something was set that a recipe depends on.
  void change() { stale_ = true; }

  // Marks that this thread is within a call; false where one is. In a forked child none is but the
  // one that forked.
  bool enter();
  bool enter_alone();  // for calls of Python's, which raise while gradients arrive
  void leave() { within_ = 0; }
  bool busy() const { return within_ != 0; }

  // Why no step may be taken now; empty where one may.
  std::string barred;

  // ---- What a step moves

  std::int64_t iterations() const { return iterations_; }
  std::int64_t count_of(std::size_t i) const { return registry_.members().at(i).count; }
  std::vector<double> memory(std::size_t i) const { return registry_.members().at(i).memory; }
  const std::vector<double>& shared() const { return shared_; }
  std::optional<double> grad_norm() const { return grad_norm_; }
  std::optional<double> last_norm() const { return last_norm_; }
  void restore(std::int64_t iterations, const std::vector<std::int64_t>& counts,
               const std::vector<std::vector<double>>& memories, std::vector<double> shared,
               std::optional<double> norm);

  // One step of other arrays than those of the only member, which lets go of them afterwards, after
  // `finished` steps: a stateless call.
  void once(py::object x, py::object g, const std::vector<py::object>& keeps, std::int64_t finished,
            std::vector<double> memory, std::vector<double> shared, const py::object& lr,
            const py::object& loss);

  // Calls see(object) for what may lead back to the optimizer, such as a schedule that asks it, or
  // an array of a class of the user's: without it the garbage collector would keep them for ever.
  template <class See> int visit(const See& see) const {
    int stopped = 0;
    const auto seen = [&](const auto&... objects) {
      ((stopped = stopped != 0 ? stopped : see(objects.ptr())), ...);
    };
    seen(acquire_, release_, make_, match_, arrival_);
    for (const member& m : registry_.members()) {
      seen(m.x, m.g);
      for (const py::object& one : m.gradient_classes) seen(one);
      for (const kept& beside : m.keeps) seen(beside.array);
    }
    for (const auto& [container, structure] : containers_) {
      seen(container);
      if (stopped == 0) stopped = structure.visit(see);
    }
    for (const tree& structure : structures_)
      if (stopped == 0) stopped = structure.visit(see);
    for (const auto& [came, stands] : replaced_) seen(came, stands);
    for (const auto& [array, value] : computed_) seen(array, value);
    for (const set_of_scalars& s : keyed_) seen(s.part, s.f, s.adapt, s.h, s.own_h);
    for (const auto* objects : {&given_, &gradients_, &values_})
      for (const py::object& object : *objects) seen(object);
    if (!recipe_) return stopped;
    const recipe& r = *recipe_;
    seen(r.part, r.scale, r.told, r.follow, r.undone, r.backend, r.direct, r.convert, r.whole);
    for (const group_settings& g : r.groups) seen(g.group, g.settings, g.values, g.at, g.before);
    return stopped;
  }

 private:
  enum class outcome { done, undone, again };

  // A call under way.
  class call_of;

  bool take(const request& asked);
  template <class Attempt> bool repeated(const Attempt& attempt_once);
  outcome attempt(const request& asked, bool last);
  void begin(const request& asked, py::dict& shared);
  void read_shared(const py::dict& shared);
  void follow(py::dict& shared, const py::object& loss, const py::object& groups) const;
  void carry_out();

  void require_idle();
  void require_unbarred();
  void end_arrival(bool failed);

  // begin
  void follow_recipe();
  bool read_settings();
  void begin_groups(const py::object& lr);
  void gather_gradients(const py::object& grads, const char* role, std::vector<py::object>& found);
  void begin_gradients(const request& asked);
  void begin_alone(std::size_t number, const py::object& g);
  void select_gradients();
  void begin_gradient(std::size_t number, py::object g);
  void expect_gradients();
  void begin_sets();
  double scale_of(const py::object& grad_scale) const;
  outcome leave_undone(const py::object& overflowing, bool own_scale);
  bool as_read() const;

  // check
  void check();
  void check_containers();
  void check_masters() const;
  bool fill();
  bool refill();
  void explain();
  bool fill_gradient(span& a, const member& m, std::size_t k);
  bool is_source(std::size_t k) const;
  bool sums_rows() const;
  bool has_pieces(const py::object& g) const;
  int gradient_flags() const;
  template <class Look> void each_gradient(std::size_t k, const Look& look) const;
  void require_gradients_apart() const;
  void require_gradient_apart(member& m, py::handle g) const;

  // measure
  scaled_norm norm_of_gradients();
  scaled_norm norm_of_whole();
  std::vector<scaled_norm> norms_of_each(std::vector<std::size_t>& counts);
  bool clip(double& scale, double& length);
  scaled_norm clip_each(double scale);
  std::size_t overflowing(double length);
  std::size_t first_overflow();
  void factor();
  std::vector<sums_of_array> measured();
  template <class Sums> std::vector<Sums> of_whole(const std::vector<double>& sums) const;
  std::ptrdiff_t elements(std::size_t k) const;
  py::object as_python(const sums_of_array& sums, std::ptrdiff_t elements) const;
  py::list stepping_groups(const std::vector<sums_of_array>& sums) const;

  // scalars
  void compute_scalars(double scale, const py::dict& shared);
  void read_factors(scalars& c, const py::dict& rule) const;
  void remember(set_of_scalars& s, const py::dict& rule) const;
  void spread();
  void spread_scales();
  void spread_rows();
  scalars scalars_of_row(std::size_t k, std::int64_t value);
  void require_rows_as_spread() const;
  void adapt_scalars(const std::vector<sums_of_array>& sums);
  py::object memory_of(const set_of_scalars& s, const py::dict& shared) const;

  // run
  void direct();
  void start_copies() const;
  void compute_in_python();
  void require_copyable();
  const py::object& backend();
  py::object row_sets(std::size_t k);
  py::object as_one(std::size_t k);
  void prepare_run();
  void run();
  void count_rows() noexcept;
  void zero_replaced() const;
  void count() noexcept;

  std::vector<scalars>& in_use();
  py::array numbers();
  py::tuple described(std::size_t set);
  void let_go();

  registry registry_;
  std::vector<tree> structures_;
  std::vector<std::pair<py::object, tree>> containers_;
  // Every place that is looked into: number of its container, and of its leaf there.
  std::vector<std::pair<std::size_t, std::size_t>> watched_;
  std::size_t next_watched_ = 0;

  py::object acquire_, release_, make_, match_;
  std::unique_ptr<recipe> recipe_;
  bool stale_ = true;         // the recipe is no longer the one to follow
  unsigned long within_ = 0;  // the thread that is within a call
  bool reading_ = false;      // what is registered, or a structure, is walked through
  bool stateless_ = false;    // what lies beside a parameter is the caller's
  bool alone_ = false;        // members step one by one, and the caller moves the clock

  std::int64_t iterations_ = 0;
  std::vector<double> shared_;
  std::optional<double> grad_norm_,
      last_norm_;            // that was measured; of the last step that was done
  double stepped_norm_ = 0;  // of the step at hand

  // The step at hand. Where the next one has gradients for the same arrays, what doesn't depend on
  // the gradients is still right.
  std::vector<py::object> given_;      // gradients by number, None where there is none
  std::vector<std::size_t> active_;    // members that have one
  std::vector<py::object> gradients_;  // theirs
  std::vector<std::pair<py::object, py::object>> replaced_;  // what came, and what stands for it
  arrays_and_values computed_;         // what Python has computed of the step, and where it belongs
  std::vector<copying> copies_;        // the same as memory
  std::vector<set_of_scalars> keyed_;  // one for each key
  std::vector<std::size_t> set_of_;    // of each active member: number of its key
  std::vector<py::object> values_;     // the hyperparameters of each kind of group in this step
  std::vector<std::size_t> kinds_;     // of each group
  std::vector<scalars> sets_;          // one for each key
  std::vector<scalars> adapted_;       // one for each active member, where their sums count
  std::vector<double> next_shared_;    // what is shared becomes by the step
  bool keyed_right_ = false;
  bool filled_ = false;
  bool has_copies_ = false;      // a span has a master or an average
  bool spread_ = false;          // each span has a set of its own
  std::vector<double> weights_;  // of the pieces, where gradients are sums of some
  std::deque<source> sources_;   // of active members, up to the last that is no array; spans point
                                 // into them
  std::vector<std::int64_t*> row_steps_;  // of each active member, or null
  std::vector<double> scales_;            // of each active member, where they have their own
  std::vector<std::vector<double>> row_factors_;  // of its rows, where they are clipped
  scaled_norm norm_{0, 0, true};                  // of the gradients, where it is measured
  bool taken_ = false;                            // whether the backend has them
  std::vector<span> spans_, joined_;              // the second: those that lie side by side as one
  std::ptrdiff_t chunks_ = 0;                     // of all spans
  std::vector<factors> factors_;                  // of each span, where any has some
  std::vector<sighting> seen_, seen_gradients_;   // of each active member x and what is kept
  std::vector<double> sums_, measurements_;       // room for those of the chunks
  bool reports_ = false;
  std::vector<double> report_sums_;
  std::optional<report_of_arrays> report_;

  // Between `open` and `close`.
  bool arriving_ = false;
  py::object arrival_;  // a weak reference to whose it is
  double opened_scale_ = 1,
         opened_raw_ = 1;                   // with what is clipped by the norm before, and without
  std::vector<std::size_t> opened_sets_;    // of each member
  std::vector<std::size_t> arrived_;        // in their order
  std::vector<bool> has_arrived_;           // of each member
  std::vector<scaled_norm> arrived_norms_;  // of each member
};

// The sums of the arrays of which these are shares, from those of the chunks here.
template <class Sums> std::vector<Sums> plan::of_whole(const std::vector<double>& sums) const {
  return recipe_->whole.attr("sums")(as_table(sums, std::tuple_size<Sums>::value), active_)
      .template cast<std::vector<Sums>>();
}

}  // namespace schuss
