// A step checks every array, before anything changes.
#include "plan.hpp"

#include <algorithm>
#include <cstdint>

namespace schuss {

namespace {

bool is_nan(kind k, std::uint16_t bits) {
  return (bits & 0x7fff) > (k == kind::float16 ? 0x7c00 : 0x7f80);
}

// Steps at whose beginning every array is looked up in the user's containers; later only so many
// at each, in turn, since a thousand look-ups would be a good part of a step.
constexpr std::int64_t all_watched = 100;
constexpr std::size_t watched_in_turn = 8;

// Whether two arrays are views of the same memory, of the same kind.
bool same_memory(const member& m, PyObject* other) {
  return py::isinstance<py::array>(other) && fields(other)->data == fields(m.x)->data &&
         has_shape(other, m.shape) && kind_of(other) == m.type &&
         (fields(other)->flags & fields(m.x)->flags & (c_order | f_order)) != 0;
}

// Factors of a member's matrices, which are its last two axes; where these aren't the last ones in
// memory there are no others.
void fit_factors(factors& f, const span& a, const member& m) {
  const std::size_t axes = m.shape.size();
  const py::ssize_t rows = m.shape[axes - 2], columns = m.shape[axes - 1];
  const bool across = (fields(m.x)->flags & c_order) == 0;
  if (across && axes > 2)
    wrong_value(m.labels[0], "in Fortran order, with more axes than a matrix has");
  const py::ssize_t matrices = size_of(shape_t(m.shape.begin(), m.shape.end() - 2));
  f.fit(a, matrices, across ? columns : rows, across ? rows : columns, across);
}

}  // namespace

// Checks every array that the step will touch.
void plan::check() {
  if (refill()) return;
  // Arrays that fit take no call of Python, so that what is seen is what is stepped; where one
  // doesn't, Python may run, and all are checked anew.
  if (!fill()) {
    explain();
    if (!fill()) throw py::value_error("params: changed while they were looked over");
  }
  std::vector<member>& members = registry_.members();
  if (!alone_ && !(arriving_ && registry_.still_written(members[active_[0]])))
    registry_.find_written();
  for (std::size_t k = 0; k < active_.size(); ++k) {
    member& m = members[active_[k]];
    each_gradient(k, [&](py::handle g) { require_gradient_apart(m, g); });
    const std::string& refuses = keyed_[set_of_[k]].refuses_rows;
    if (spans_[k].rows != nullptr && !refuses.empty())
      wrong_value(m.labels[1], "Rows, but " + refuses);
  }
  require_gradients_apart();
  filled_ = true;
}

// Raises where a gradient overlaps what the step writes.
void plan::require_gradient_apart(member& m, py::handle g) const {
  alone_ ? registry_.require_apart_alone(m, g) : registry_.require_apart(m, g);
}

// Fills the spans from the arrays as they are now; false where one doesn't fit.
bool plan::fill() {
  filled_ = has_copies_ = false;
  spans_.clear();
  factors_.resize(registry_.factored() ? active_.size() : 0);
  row_steps_.assign(active_.size(), nullptr);
  chunks_ = 0;
  seen_.clear();
  seen_gradients_.clear();
  for (std::size_t k = 0; k < active_.size(); ++k) {
    const member& m = registry_.members()[active_[k]];
    if (!m.fits(m.x, aligned | writeable) || kind_of(m.x) != m.type) return false;
    span a{};
    a.x = stream_of(m.x, m.type);
    a.size = a.row_size = size_of(m.shape);
    a.width = a.x.width;
    a.position = m.position;
    a.set = adapted_.empty() ? set_of_[k] : k;
    seen_.emplace_back(m.x, m.shape);
    for (std::size_t s = 0; s < m.keeps.size(); ++s) {
      const kept& beside = m.keeps[s];
      if (!m.fits(beside.array, flags_of(beside), beside.shape) ||
          kind_of(beside.array, beside.role) != beside.type)
        return false;
      seen_.emplace_back(beside.array, beside.shape);
      if (beside.place == nullptr) {
        row_steps_[k] = reinterpret_cast<std::int64_t*>(fields(beside.array)->data);
        continue;
      }
      stream& place = *beside.place(a, beside.state);
      if (beside.role == "scales") {
        place.beside = fields(beside.array)->data;
      } else {
        place = stream_of(beside.array, beside.type);
        a.width += place.width;
      }
    }
    if (a.row.kind != kind::none) {
      fit_factors(factors_[k], a, m);
      a.state[0] = {&factors_[k].product, kind::outer, 0};
    }
    if (a.master.kind == kind::remainder) a.master.beside = a.x.data;
    has_copies_ = has_copies_ || a.master.kind != kind::none || a.average.kind != kind::none;
    if (!fill_gradient(a, m, k)) return false;
    // A source knows by itself what it has seen.
    seen_gradients_.emplace_back(is_source(k) ? py::handle(m.x) : gradients_[k], m.shape);
    a.chunk = chunks_;
    chunks_ += chunks(a);
    spans_.push_back(a);
  }
  return true;
}

int plan::gradient_flags() const { return recipe_->zero_grad ? aligned | writeable : aligned; }

// Whether a gradient is a tuple of pieces; others that are given may be a tuple, and wrong.
bool plan::has_pieces(const py::object& g) const {
  return !weights_.empty() && PyTuple_Check(g.ptr()) != 0;
}

// Whether a gradient is, or has to be seen as, more than an array.
bool plan::is_source(std::size_t k) const {
  const py::object& g = gradients_[k];
  return row_steps_[k] != nullptr || (k < row_factors_.size() && !row_factors_[k].empty()) ||
         is_rows(g) || has_pieces(g);
}

// Whether something of rows is summed, or told to Python, in their order.
bool plan::sums_rows() const {
  return recipe_->measures_norm || recipe_->wanted != 0 || reports_ || !recipe_->backend.is_none();
}

bool plan::fill_gradient(span& a, const member& m, std::size_t k) {
  const py::object& g = gradients_[k];
  const int flags = gradient_flags();
  if (is_source(k)) {
    while (sources_.size() <= k) sources_.emplace_back();
    source& from = sources_[k];
    if (!(from.is_read() && from.still()) &&
        !from.read(m, g, weights_, row_steps_[k] != nullptr, sums_rows(), flags)) {
      from.forget();  // or the part that was read would stand for all of it
      return false;
    }
    if (k < row_factors_.size() && !row_factors_[k].empty())
      from.scale_rows(row_factors_[k], rows_of(m).size);
    from.fill(a);
    return true;
  }
  if (!m.fits(g, flags)) return false;
  const std::optional<kind> type = kind_of(g);
  if (!goes_with(type, m.type)) return false;
  a.width -= a.g.width;
  a.g = stream_of(g, *type);
  a.width += a.g.width;
  return true;
}

template <class Look> void plan::each_gradient(std::size_t k, const Look& look) const {
  if (is_source(k))
    sources_[k].each_array(look);
  else
    look(gradients_[k]);
}

// Whether the spans are still right. Gradients may be others: those are put in their place.
bool plan::refill() {
  if (!filled_) return false;
  for (const sighting& beside : seen_)
    if (!beside.still()) return false;
  bool others = false;
  for (std::size_t k = 0; k < active_.size(); ++k) {
    if (is_source(k)) {
      if (k < sources_.size() && sources_[k].is_read() && sources_[k].still()) continue;
      return false;
    }
    if (seen_gradients_[k].still(gradients_[k])) continue;
    filled_ = false;  // until all have been found good
    member& m = registry_.members()[active_[k]];
    if (!fill_gradient(spans_[k], m, k)) return false;
    seen_gradients_[k] = sighting(gradients_[k], m.shape);
    require_gradient_apart(m, gradients_[k]);
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
  for (std::size_t k = 0; k < active_.size(); ++k)
    each_gradient(k, [&](py::handle g) {
      const extent a = extent_of(g, registry_.members()[active_[k]].labels[1]);
      if (a.first < a.last) found.push_back(a);
    });
  require_apart(found);
}

// Says what is wrong with the first array that doesn't fit; returns where only a gradient's class
// was new, which is then accepted.
void plan::explain() {
  for (std::size_t k = 0; k < active_.size(); ++k) {
    member& m = registry_.members()[active_[k]];
    m.require_unchanged(m.x, m.type, aligned | writeable, m.shape, m.labels[0]);
    for (std::size_t s = 0; s < m.keeps.size(); ++s) {
      const kept& beside = m.keeps[s];
      m.require_unchanged(beside, m.labels[s + 2]);
    }
    source::explain(m, gradients_[k], has_pieces(gradients_[k]), gradient_flags());
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
  if (watched_.empty())
    for (std::size_t c = 0; c < containers_.size(); ++c)
      for (std::size_t place = 0; place < containers_[c].second.leaves(); ++place)
        watched_.emplace_back(c, place);
  const bool all = iterations_ < all_watched || watched_.size() <= watched_in_turn;
  for (std::size_t n = all ? watched_.size() : watched_in_turn; n > 0; --n) {
    const auto [c, place] = watched_[next_watched_++ % watched_.size()];
    const auto& [container, structure] = containers_[c];
    const auto [number, there] = structure.at(container, place);
    require(number, there);
  }
}

// Whether a parameter is still what its master was rounded to, at its ends and one place that
// wanders: whoever fills the whole array is noticed.
void plan::check_masters() const {
  for (const std::size_t number : active_) {
    const member& m = registry_.members()[number];
    const auto is_master = [](const kept& k) { return k.role == "master"; };
    const auto master = std::find_if(m.keeps.begin(), m.keeps.end(), is_master);
    const std::ptrdiff_t size = size_of(m.shape);
    if (master == m.keeps.end() || master->type != kind::float32 || size == 0 || m.count == 0 ||
        !m.fits(m.x, aligned) || !m.fits(master->array, aligned))
      continue;
    for (const std::ptrdiff_t i :
         {std::ptrdiff_t{0}, size - 1, static_cast<std::ptrdiff_t>(m.count % size)}) {
      std::uint16_t rounded = 0;
      const auto there = reinterpret_cast<const std::uint16_t*>(fields(m.x)->data)[i];
      float exact = reinterpret_cast<const float*>(fields(master->array)->data)[i];
      kernels().convert({&exact, kind::float32, sizeof exact}, {&rounded, m.type, sizeof rounded},
                        1);
      if (rounded == there || is_nan(m.type, there)) continue;
      wrong_value(m.labels[0],
                  std::string("no longer what its master was rounded to: it was written to from "
                              "outside, and the step would undo that; ") +
                      (stateless_ ? "write it into the master, too (master[...] = param)"
                                  : "call opt.refresh(), which takes the master anew from it"));
    }
  }
}

}  // namespace schuss
