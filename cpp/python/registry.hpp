// What is registered: the parameters with their gradients and state, what each of these arrays has
// to be, and the counters.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/driver.hpp"
#include "contract.hpp"
#include "overlap.hpp"

namespace schuss {

// An array that stays beside a parameter, and its place in the span.
struct kept {
  py::array array;
  std::string role;
  std::size_t state;  // the number of the state that it is, or has the scales of
  kind type;
  shape_t shape;
  stream* (*place)(span&, std::size_t);
  bool written;
};

// The places by the role that Python names: "state" for those of the rule, or "codes" and then
// their "scales".
inline const std::map<std::string, std::pair<stream* (*)(span&, std::size_t), bool>> places = {
    {"state", {[](span& a, std::size_t s) { return &a.state[s]; }, true}},
    {"codes", {[](span& a, std::size_t s) { return &a.state[s]; }, true}},
    {"scales", {[](span& a, std::size_t s) { return &a.state[s]; }, true}},
    {"row_var", {[](span& a, std::size_t) { return &a.row; }, true}},
    {"col_var", {[](span& a, std::size_t) { return &a.column; }, true}},
    {"master", {[](span& a, std::size_t) { return &a.master; }, true}},
    {"average", {[](span& a, std::size_t) { return &a.average; }, true}},
    {"low", {[](span& a, std::size_t) { return &a.low; }, false}},
    {"high", {[](span& a, std::size_t) { return &a.high; }, false}},
    {"row_step", {nullptr, true}},
    {"row_last", {nullptr, true}},
};

inline int flags_of(const kept& k) { return k.written ? aligned | writeable : aligned; }

// The shape of an array beside a parameter: its own, or that of a factor, which has one element for
// each row of its matrices, the last two axes, or for each column; or one for each row of the first
// axis.
inline shape_t shape_beside(shape_t of, const std::string& role) {
  if (counts_rows(role) && of.empty()) throw py::value_error(role + ": of an array without rows");
  if (counts_rows(role)) return {of[0]};
  if (role != "row_var" && role != "col_var") return of;
  if (of.size() < 2) throw py::value_error(role + ": of an array that is no matrix");
  of[of.size() - (role == "row_var" ? 1 : 2)] = 1;
  return of;
}

// One parameter with its gradient and its state.
struct member {
  std::vector<std::string> labels;  // how messages name x, g and each array beside them
  py::array x;
  std::vector<kept> keeps;  // the rule's state arrays, then others
  py::object g;             // bound, or None
  shape_t shape;
  kind type;
  std::size_t states = 0;  // arrays that the rule sees
  py::ssize_t position;    // elements of the members before it
  std::size_t group;
  bool decays;                               // whether its group's weight decay is for it, too
  int rule_case;                             // which of those that its rule tells apart
  std::vector<double> memory;                // numbers that its rule keeps beside the arrays
  std::int64_t count = 0;                    // finished steps of this array
  std::vector<py::object> gradient_classes;  // of gradients that were checked and found good
  std::size_t first_address = 0;             // of its arrays among those that the registry knows
  const char *apart = nullptr, *apart_end = nullptr;  // memory of the last gradient that was
                                                      // found to overlap nothing that is written
  std::vector<const char*> own_addresses;             // where x and the arrays beside it lay, when
  std::vector<extent> own_written;                    // these were found to be apart, sorted

  // Whether an array has what this parameter asks for, its class included: ndarray, the
  // parameter's, or one that was checked before.
  bool fits(py::handle a, int flags) const { return fits(a, flags, shape); }
  bool fits(py::handle a, int flags, const shape_t& wanted) const {
    const auto* own = reinterpret_cast<PyObject*>(Py_TYPE(a.ptr()));
    return (own == reinterpret_cast<PyObject*>(Py_TYPE(x.ptr())) || own == ndarray() ||
            std::any_of(gradient_classes.begin(), gradient_classes.end(),
                        [own](const py::object& one) { return one.ptr() == own; })) &&
           (fields(a)->flags & flags) == flags && has_shape(a, wanted) &&
           (fields(a)->flags & fields(x)->flags & (c_order | f_order)) != 0;
  }

  // Takes a gradient's class in, which may run Python; the last few are known.
  void accept(py::handle g) {
    constexpr std::size_t most = 8;
    if (gradient_classes.size() == most) gradient_classes.erase(gradient_classes.begin());
    gradient_classes.push_back(py::type::of(g));
  }

  // A state array or a gradient: shape, order and type of the parameter.
  void require_like(py::handle a, const std::string& label, const std::string& role) const {
    const bool written = role != "gradient";
    require_array(a, label, written);
    if (const shape_t wanted = shape_beside(shape, role); !has_shape(a, wanted))
      wrong_value(label, "shape " + shape_text(shape_of(a)) + ", but " + labels[0] + " has shape " +
                             shape_text(shape));
    if (!goes_with(kind_of(a), type)) {
      const std::string wanted = type == kind::float64 ? "float64" : "float32";
      wrong_type(label, dtype_text(a) + ", but " + labels[0] + " is " + dtype_text(x) + "; " +
                            (written ? created_as("x.astype(np." + wanted + ")")
                                     : "pass the gradient as .astype(np." + wanted +
                                           "), or make the parameter " + dtype_text(a)));
    }
    if ((fields(a)->flags & fields(x)->flags & (c_order | f_order)) == 0) {
      const bool c = (fields(x)->flags & c_order) != 0;
      const std::string ordered = c ? "np.ascontiguousarray" : "np.asfortranarray";
      wrong_value(label,
                  std::string("in ") + (c ? "Fortran" : "C") + " order, but " + labels[0] +
                      " is in " + (c ? "C" : "Fortran") + " order; " +
                      (written ? created_as(ordered + "(x)")
                               : (c ? "compute it in C order (x.T @ dy, not (dy.T @ x).T), or "
                                      "pass "
                                    : "pass ") +
                                     ordered + " of it"));
    }
  }

  // An array of whole numbers, which are codes, scales or remainders: as Python makes it.
  void require_codes(const kept& k, const std::string& label) const {
    if (k.type == kind::none || type == kind::float64 ||
        (k.type == kind::remainder && type != kind::bfloat16))
      wrong_type(label,
                 dtype_text(k.array) + ", which is not for " + labels[0] + ", " + dtype_text(x));
    if (!fits(k.array, aligned | writeable, k.shape))
      wrong_value(label, description(k.array) + ", not as it was made: of shape " +
                             shape_text(k.shape) + ", in the order of " + labels[0] +
                             ", and writeable");
  }

  // The whole numbers that are kept of each row, for a parameter whose rows lie side by side.
  void require_row_steps(const kept& k, bool whole, const std::string& label) const {
    if ((fields(x)->flags & c_order) == 0)
      wrong_value(label, "for rows of the first axis, but " + labels[0] + " is in Fortran order");
    if (!whole || !fits(k.array, aligned | writeable, k.shape))
      wrong_value(label, description(k.array) + ", wanted int64 of shape " + shape_text(k.shape) +
                             ", writeable");
  }

  // What stages keep beside a parameter is of the type that it computes in; and a master is for a
  // parameter of 16 bits.
  void require_computing(py::handle a, const std::string& role, const std::string& label) const {
    const kind computing = type == kind::float64 ? kind::float64 : kind::float32;
    if (kind_of(a) != computing)
      wrong_type(label, dtype_text(a) + ", but " + labels[0] + " computes in " +
                            (computing == kind::float64 ? "float64" : "float32"));
    if (role == "master" && (type == kind::float32 || type == kind::float64))
      wrong_type(label, "for a parameter of 16 bits, but " + labels[0] + " is " + dtype_text(x) +
                            "; leave it out");
  }

  // An array beside this parameter is what its role asks for; Python may run.
  kept checked(py::handle a, const std::string& role, std::size_t state,
               const std::string& label) const {
    if (!py::isinstance<py::array>(a)) throw py::type_error(no_array(a, label, true));
    const auto [place, written] = places.at(role);
    const bool scales = role == "scales";
    const shape_t own =
        scales ? shape_t{(size_of(shape) + coded - 1) / coded} : shape_beside(shape, role);
    const std::optional<kind> found = kind_of(a, role);
    kept k{py::reinterpret_borrow<py::array>(a),
           role,
           state,
           found.value_or(kind::none),
           own,
           place,
           written};
    if (counts_rows(role)) {
      require_row_steps(k, found.has_value(), label);
      return k;
    }
    if (scales || role == "codes" || in_whole_numbers(k.type)) {
      require_codes(k, label);
      return k;
    }
    require_like(a, label, role);
    if (written) require_writeable(a, label);
    if (role != "state") require_computing(a, role, label);
    k.type = *kind_of(a);
    return k;
  }

  // An array that is registered already, and may have been changed since.
  void require_unchanged(const kept& k, const std::string& label) const {
    if (k.place == nullptr) return require_row_steps(k, kind_of(k.array, k.role) == k.type, label);
    if (!in_whole_numbers(k.type))
      return require_unchanged(k.array, k.type, flags_of(k), k.shape, label);
    if (kind_of(k.array, k.role) != k.type)
      wrong_value(label, description(k.array) + ": of another type than it was made in");
    require_codes(k, label);
  }
  void require_unchanged(py::handle a, kind own, int flags, const shape_t& wanted,
                         const std::string& label) const {
    if (fits(a, flags, wanted) && kind_of(a) == own) return;
    require_array(a, label, (flags & writeable) != 0);
    if ((flags & writeable) != 0) require_writeable(a, label);
    if (!has_shape(a, wanted))
      wrong_value(label, "shape " + shape_text(shape_of(a)) + " is no longer the registered " +
                             shape_text(wanted) + "; restore it, or rebind arrays of that shape");
    wrong_value(label, "dtype " + dtype_text(a) +
                           " or its memory order is no longer the registered one; restore it, or "
                           "rebind arrays of that kind");
  }
};

// The rows of a member's first axis: how many, and the elements of each.
struct row_layout {
  std::ptrdiff_t count, size;
};
inline row_layout rows_of(const member& m) {
  if (m.shape.empty()) return {1, 1};
  std::ptrdiff_t size = 1;
  for (std::size_t axis = 1; axis < m.shape.size(); ++axis) size *= m.shape[axis];
  return {m.shape[0], size};
}

// Extents point at labels, which have to stay where they are when members are moved.
static_assert(std::is_nothrow_move_constructible_v<member>);

// What the arrays that share a set of scalars have in common: the settings' number, whether they
// decay, their count, their memory, the case of the rule.
using key = std::tuple<std::size_t, bool, std::int64_t, std::vector<double>, int>;

class registry {
 public:
  // Takes a parameter in, with the arrays that stay beside it by role; nothing is changed where it
  // can't be. `position` is where it begins among the elements of all.
  void add(std::vector<std::string> labels, py::object x,
           const std::vector<std::pair<std::string, py::object>>& keeps, py::object g,
           std::size_t group, bool decays, std::vector<double> memory, int rule_case,
           std::ptrdiff_t position) {
    if (labels.size() != keeps.size() + 2)
      throw py::value_error("labels: one for x, g and each array beside them");
    require_parameter(x, labels[0]);
    member m{};
    m.labels = std::move(labels);
    m.x = py::reinterpret_borrow<py::array>(x);
    m.g = std::move(g);
    m.shape = shape_of(x);
    m.type = *kind_of(x);
    m.position = position;
    m.group = group;
    m.decays = decays;
    m.memory = std::move(memory);
    m.rule_case = rule_case;
    for (std::size_t s = 0; s < keeps.size(); ++s) {
      const auto& [role, a] = keeps[s];
      const bool codes = role == "codes", scales = role == "scales";
      const bool before = s > 0 && keeps[s - 1].first == "codes";
      if (scales != before || (codes && s + 1 == keeps.size()))
        throw py::value_error("keeps: codes, and then their scales");
      m.keeps.push_back(m.checked(a, role, scales ? m.states - 1 : m.states, m.labels[s + 2]));
      if (codes || role == "state" || role == "row_var") ++m.states;  // the rule sees a product
      factored_ = factored_ || role == "row_var";
      counts_rows_ = counts_rows_ || schuss::counts_rows(role);
    }
    if (m.states > most_states) throw py::value_error("state: too many arrays");
    if (!m.g.is_none() && !is_rows(m.g))  // which every step looks at
      m.require_like(m.g, m.labels[1], "gradient");
    members_.push_back(std::move(m));
  }

  // Other arrays in the place of those of the only member, which may be of other shapes and types.
  void replace(py::object x, py::object g, const std::vector<py::object>& keeps,
               std::int64_t finished, std::vector<double> memory) {
    member& m = members_.at(0);
    if (keeps.size() != m.keeps.size()) throw py::value_error("keeps: as many as registered");
    require_parameter(x, m.labels[0]);
    m.x = py::reinterpret_borrow<py::array>(x);
    m.shape = shape_of(x);
    m.type = *kind_of(x);
    for (std::size_t s = 0; s < keeps.size(); ++s)
      m.keeps[s] = m.checked(keeps[s], m.keeps[s].role, m.keeps[s].state, m.labels[s + 2]);
    m.g = std::move(g);
    m.count = finished;
    m.memory = std::move(memory);
    forget_written();
  }

  void release() {
    member& m = members_.at(0);
    m.g = py::none();
    m.x = py::reinterpret_steal<py::array>(py::none().release());
    for (kept& beside : m.keeps)
      beside.array = py::reinterpret_steal<py::array>(py::none().release());
  }

  // Lets go of all members but the first ones.
  void keep_first(std::size_t size) {
    while (members_.size() > size) members_.pop_back();
    forget_written();
  }

  // Takes other arrays of the same shapes, types and orders in place of the parameters: all of
  // them, or none.
  void rebind(const std::vector<py::object>& arrays) {
    for (std::size_t i = 0; i < members_.size(); ++i) require_alike(members_[i], arrays[i]);
    std::vector<py::array> before;
    for (std::size_t i = 0; i < members_.size(); ++i)
      before.push_back(std::exchange(members_[i].x, py::reinterpret_borrow<py::array>(arrays[i])));
    forget_written();
    try {
      require_disjoint();
    } catch (...) {
      for (std::size_t i = 0; i < members_.size(); ++i) members_[i].x = before[i];
      forget_written();
      throw;
    }
  }

  // Another array of the same shape, type and order in the place of one parameter.
  void rebind_one(member& m, const py::object& x) {
    require_alike(m, x);
    m.x = py::reinterpret_borrow<py::array>(x);
  }

  // Puts the member that came last in the place of another one, which goes; it keeps its number
  // and its count.
  void replace_by_last(std::size_t i) {
    member& last = members_.back();
    last.count = members_[i].count;
    const member gone = std::exchange(members_[i], std::move(last));
    members_.pop_back();
    forget_written();
  }

  // Written arrays may not overlap one another, nor a bound gradient.
  void require_disjoint() {
    find_written();
    for (member& m : members_)
      if (!m.g.is_none() && !is_rows(m.g)) require_apart(m, m.g);
  }

  // The written memory of all members, in order; found anew when an array has moved, and of new
  // members alone where only these have come.
  void find_written() {
    bool moved = written_.empty();
    std::size_t n = 0;
    const auto same = [&](py::handle a) { moved = moved || addresses_[n++] != fields(a)->data; };
    for (std::size_t i = 0; i < known_ && !moved; ++i) {
      same(members_[i].x);
      for (const kept& beside : members_[i].keeps) same(beside.array);
    }
    if (moved) forget_written();
    if (known_ == members_.size()) return;
    std::vector<extent> more;
    const auto take = [&](const py::array& a, const std::string& label) {
      addresses_.push_back(fields(a)->data);
      if (a.nbytes() > 0) more.push_back(extent_of(a, label));
    };
    for (member& m : members_) m.apart = m.apart_end = nullptr;
    for (; known_ < members_.size(); ++known_) {
      member& m = members_[known_];
      m.first_address = addresses_.size();
      take(m.x, m.labels[0]);
      for (std::size_t s = 0; s < m.keeps.size(); ++s) take(m.keeps[s].array, m.labels[s + 2]);
    }
    try {
      join_apart(written_, more);
    } catch (...) {
      forget_written();
      throw;
    }
  }

  // The same, where only a few members step, each in a call of its own.
  bool still_written(const member& m) const {
    if (known_ != members_.size()) return false;
    std::size_t n = m.first_address;
    bool still = addresses_[n] == fields(m.x)->data;
    for (const kept& beside : m.keeps)
      still = still && addresses_[++n] == fields(beside.array)->data;
    return still;
  }

  // A gradient is only read, so gradients may overlap one another, but nothing that the step
  // writes.
  void require_apart(member& m, py::handle g) const { require_apart(m, g, written_); }

  // The same of a member that steps alone, whose own arrays are all that is written then: those of
  // others may lie where the client had another array before.
  void require_apart_alone(member& m, py::handle g) const {
    std::size_t n = 0;
    bool same = m.own_addresses.size() == m.keeps.size() + 1;
    const auto each = [&](const auto& look) {
      look(m.x, m.labels[0]);
      for (std::size_t s = 0; s < m.keeps.size(); ++s) look(m.keeps[s].array, m.labels[s + 2]);
    };
    each([&](const py::array& a, const std::string&) {
      same = same && m.own_addresses[n++] == fields(a)->data;
    });
    if (!same) {
      m.own_addresses.clear(), m.own_written.clear();
      std::vector<const char*> addresses;
      std::vector<extent> written;
      each([&](const py::array& a, const std::string& label) {
        addresses.push_back(fields(a)->data);
        if (a.nbytes() > 0) written.push_back(extent_of(a, label));
      });
      schuss::require_apart(written);
      m.own_written.swap(written);
      m.own_addresses.swap(addresses);
      m.apart = m.apart_end = nullptr;
    }
    require_apart(m, g, m.own_written);
  }

  std::vector<member>& members() { return members_; }
  const std::vector<member>& members() const { return members_; }
  // Whether a member ever had factors, or something that is counted of its rows.
  bool factored() const { return factored_; }
  bool counts_rows() const { return counts_rows_; }

 private:
  static void require_alike(const member& m, const py::object& x) {
    const bool alike = py::isinstance<py::array>(x) && has_shape(x, m.shape) &&
                       kind_of(x) == m.type &&
                       (fields(x)->flags & fields(m.x)->flags & (c_order | f_order)) != 0;
    if (!alike)
      wrong_value(m.labels[0], description(x) + " where " + description(m.x) + " is registered" +
                                   view_of_complex(x));
    require_parameter(x, m.labels[0]);
  }

  // Raises where what is read of a gradient overlaps memory that is written, where it is not known
  // from the step before that it doesn't.
  static void require_apart(member& m, py::handle g, const std::vector<extent>& written) {
    const extent read = extent_of(g, m.labels[1]);
    if (read.first == m.apart && read.last == m.apart_end) return;
    require_apart_from(written, read);
    m.apart = read.first;
    m.apart_end = read.last;
  }

  void forget_written() {
    written_.clear();
    addresses_.clear();
    known_ = 0;
  }

  std::vector<member> members_;
  std::vector<extent> written_;         // of the first members, sorted
  std::vector<const char*> addresses_;  // theirs, in order
  std::size_t known_ = 0;               // how many members these are of
  bool factored_ = false, counts_rows_ = false;
};

}  // namespace schuss
