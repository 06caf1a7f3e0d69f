#include "gradient.hpp"

#include <algorithm>
#include <numeric>

namespace schuss {

namespace {

const row_gradient* as_rows(py::handle g) {
  return is_rows(g) ? py::cast<const row_gradient*>(g) : nullptr;
}

bool is_index(py::handle a) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(a.ptr())) != ndarray() || fields(a)->nd != 1)
    return false;  // a class may have its own idea, as of a mask
  const py::ssize_t size = dtype_of(a).itemsize();
  constexpr int wanted = c_order | aligned;
  return descriptor(a)->kind == 'i' && (size == 4 || size == 8) &&
         descriptor(a)->byteorder != '>' && (fields(a)->flags & wanted) == wanted;
}

std::int64_t element(py::handle index, py::ssize_t i) {
  const char* const data = fields(index)->data;
  if (dtype_of(index).itemsize() == 4) return reinterpret_cast<const std::int32_t*>(data)[i];
  return reinterpret_cast<const std::int64_t*>(data)[i];
}

// The shape of so many rows of a member.
shape_t shape_of_rows(const member& m, py::ssize_t rows) {
  shape_t found = m.shape;
  found[0] = rows;
  return found;
}

bool has_first_axis(const member& m) {
  return !m.shape.empty() && (fields(m.x)->flags & c_order) != 0;
}

// The label of piece j of a gradient: pieces[1]["w"] where that is grads["w"].
std::string piece_label(const std::string& label, std::size_t j) {
  const std::string role = "grads", own = "pieces[" + std::to_string(j) + "]";
  return label.rfind(role, 0) == 0 ? own + label.substr(role.size()) : own;
}

void require_kind(const member& m, py::handle a, const std::string& label) {
  if (goes_with(kind_of(a), m.type)) return;
  const std::string wanted = m.type == kind::float64 ? "float64" : "float32";
  wrong_type(label, dtype_text(a) + ", but " + m.labels[0] + " is " + dtype_text(m.x) +
                        "; pass them as .astype(np." + wanted + ")");
}

void require_rows(const member& m, const row_gradient& g, const std::string& label, int flags) {
  if (!has_first_axis(m))
    wrong_value(label, "Rows, but " + m.labels[0] + " is " + description(m.x) +
                           "; they are for rows of the first axis, in C order");
  if (!is_index(g.index)) {
    const std::string of = label + ".index";
    if (!py::isinstance<py::array>(g.index))
      wrong_type(of, type_text(g.index) + "; pass an array of int64 or int32");
    if (reinterpret_cast<PyObject*>(Py_TYPE(g.index.ptr())) != ndarray())
      wrong_type(of, type_text(g.index) + "; pass it as a plain array, np.array(index)");
    const bool kind = descriptor(g.index)->kind == 'i' || descriptor(g.index)->kind == 'u';
    if (!kind || dtype_of(g.index).attr("char").cast<std::string>().find_first_of("ilq") != 0)
      wrong_type(of, dtype_text(g.index) + "; pass it as .astype(np.int64)");
    wrong_value(of, description(g.index) +
                        "; pass one contiguous axis in native byte order, "
                        "np.ascontiguousarray(index).ravel()");
  }
  require_array(g.values, label + ".values", false);
  require_kind(m, g.values, label + ".values");
  const shape_t wanted = shape_of_rows(m, fields(g.index)->dimensions[0]);
  if (!has_shape(g.values, wanted))
    wrong_value(label + ".values", "shape " + shape_text(shape_of(g.values)) +
                                       ", but so many rows of " + m.labels[0] + " have shape " +
                                       shape_text(wanted));
  if ((fields(g.values)->flags & c_order) == 0)
    wrong_value(label + ".values", "in Fortran order; pass np.ascontiguousarray of them");
  if ((flags & writeable) != 0) require_writeable(g.values, label + ".values");
  for (py::ssize_t i = 0; i < wanted[0]; ++i) {
    const std::int64_t row = element(g.index, i);
    if (row < 0 || row >= m.shape[0])
      wrong_value(label + ".index", "row " + std::to_string(row) + " at " + std::to_string(i) +
                                        ", but " + m.labels[0] + " has " +
                                        std::to_string(m.shape[0]) + " rows, which count from 0");
  }
}

// Why the state of a member can't be stepped by rows; empty where it can.
std::string whole_state(const member& m) {
  for (const kept& beside : m.keeps) {
    if (beside.role == "row_var")
      return "Rows, but the second moments of " + m.labels[0] +
             " are factors of whole matrices; pass the gradient of all of it";
    if (const py::ssize_t size = rows_of(m).size; beside.role == "codes" && size % coded != 0)
      return "Rows of " + std::to_string(size) +
             " elements, but state in blockfloat8 has a scale " + "for each " +
             std::to_string(coded) + "; make rows multiples of that, or choose another state_dtype";
  }
  return "";
}

}  // namespace

void source::explain(member& m, const py::object& g, bool has_pieces, int flags) {
  const auto one = [&](const py::object& part, const std::string& label) {
    if (const row_gradient* const rows = as_rows(part)) {
      require_rows(m, *rows, label, flags);
      m.accept(rows->values);
      if (const std::string why = whole_state(m); !why.empty()) wrong_value(label, why);
    } else {
      m.require_like(part, label, "gradient");
      if ((flags & writeable) != 0) require_writeable(part, label);
      m.accept(part);
    }
  };
  if (!has_pieces) return one(g, m.labels[1]);
  std::size_t j = 0;
  const row_gradient* rows = nullptr;
  bool first = true;
  for (const py::handle part : g) {
    const std::string label = piece_label(m.labels[1], j++);
    if (part.is_none()) continue;
    if (!std::exchange(first, false) && (rows == nullptr) != (as_rows(part) == nullptr))
      wrong_type(label,
                 std::string(as_rows(part) != nullptr ? "Rows" : "an array") +
                     ", but another piece of it is not; pass all of them as one or the other");
    rows = as_rows(part);
    one(py::reinterpret_borrow<py::object>(part), label);
  }
}

bool source::see(const member& m, py::handle a, const shape_t& shape, int flags) {
  if (!py::isinstance<py::array>(a) || !m.fits(a, flags, shape) || !goes_with(kind_of(a), m.type))
    return false;
  shapes_.push_back(shape);
  seen_.emplace_back(a, shapes_.back());
  return true;
}

bool source::still() const {
  return std::all_of(seen_.begin(), seen_.end(), [](const sighting& a) { return a.still(); });
}

bool source::read(const member& m, const py::object& g, const std::vector<double>& weights,
                  bool by_row, bool ascending, int flags) {
  numbers.clear(), sets.clear(), begins_.clear(), pieces_.clear(), factors_.clear();
  seen_.clear(), shapes_.clear();
  by_row_ = by_row;
  std::vector<part> parts;
  std::vector<py::object> held;
  if (!weights.empty() && PyTuple_Check(g.ptr()) != 0) {
    for (const py::handle one : g) held.push_back(py::reinterpret_borrow<py::object>(one));
    for (std::size_t j = 0; j < held.size(); ++j)
      if (!held[j].is_none()) parts.push_back({held[j], weights.at(j)});
  } else {
    parts.push_back({g, 1});
  }
  shapes_.reserve(parts.size());  // sightings point into it
  const bool rows = as_rows(parts.at(0).g) != nullptr;
  for (const part& one : parts)
    if ((as_rows(one.g) != nullptr) != rows) return false;
  row_size_ = rows_of(m).size;
  if (rows) {
    by_row_ = true;
    if (!whole_state(m).empty()) return false;
    const int wanted = flags | c_order;
    for (const part& one : parts) {
      const row_gradient& part_rows = *as_rows(one.g);
      if (!has_first_axis(m) || !is_index(part_rows.index)) return false;
      const py::ssize_t n = fields(part_rows.index)->dimensions[0];
      if (!see(m, part_rows.values, shape_of_rows(m, n), wanted)) return false;
    }
    return read_rows(m, parts, ascending);
  }
  for (const part& one : parts) {
    if (!see(m, one.g, m.shape, flags)) return false;
    pieces_.push_back({fields(one.g)->data, *kind_of(one.g), one.weight});
  }
  if (!by_row_) return true;
  const std::vector<piece> whole = std::exchange(pieces_, {});
  for (py::ssize_t row = 0; row < m.shape[0]; ++row) {
    numbers.push_back(row);
    begins_.push_back(static_cast<std::ptrdiff_t>(pieces_.size()));
    for (piece one : whole) {
      one.data = static_cast<char*>(one.data) + row * row_size_ * width_of(one.kind);
      pieces_.push_back(one);
    }
  }
  begins_.push_back(static_cast<std::ptrdiff_t>(pieces_.size()));
  return true;
}

bool source::read_rows(const member& m, const std::vector<part>& parts, bool ascending) {
  std::size_t all = 0;
  for (const part& one : parts)
    all += static_cast<std::size_t>(fields(as_rows(one.g)->index)->dimensions[0]);
  numbers.resize(all);
  std::ptrdiff_t* to = numbers.data();
  for (const part& one : parts) {
    const py::object& index = as_rows(one.g)->index;
    const auto take = [&](const auto* from, py::ssize_t n) {
      bool inside = true;
      for (py::ssize_t i = 0; i < n; ++i) {
        *to++ = from[i];
        inside = inside && from[i] >= 0 && from[i] < m.shape[0];
      }
      return inside;
    };
    const char* const data = fields(index)->data;
    const py::ssize_t n = fields(index)->dimensions[0];
    if (!(dtype_of(index).itemsize() == 4 ? take(reinterpret_cast<const std::int32_t*>(data), n)
                                          : take(reinterpret_cast<const std::int64_t*>(data), n)))
      return false;
  }
  const auto piece_of = [](const part& one) {
    const py::object& values = as_rows(one.g)->values;
    return piece{fields(values)->data, *kind_of(values), one.weight};
  };
  if (parts.size() == 1 && !ascending && are_distinct(m.shape[0])) {
    pieces_.push_back(piece_of(parts.front()));
    return true;
  }
  pieces_.reserve(all);
  for (const part& one : parts) {
    piece own = piece_of(one);
    const std::ptrdiff_t bytes = row_size_ * width_of(own.kind);
    for (py::ssize_t n = fields(as_rows(one.g)->index)->dimensions[0]; n > 0; --n) {
      pieces_.push_back(own);
      own.data = static_cast<char*>(own.data) + bytes;
    }
  }
  gather(m.shape[0]);
  return true;
}

// Whether no row comes twice: a mark for each row of the parameter, which are all taken away again.
bool source::are_distinct(std::ptrdiff_t rows) {
  constexpr std::size_t bits = 64;
  marks_.resize(static_cast<std::size_t>(rows) / bits + 1);
  bool distinct = true;
  std::size_t n = 0;
  for (; n < numbers.size() && distinct; ++n) {
    const auto row = static_cast<std::size_t>(numbers[n]);
    const std::uint64_t mark = std::uint64_t{1} << row % bits;
    distinct = (marks_[row / bits] & mark) == 0;
    marks_[row / bits] |= mark;
  }
  for (std::size_t i = 0; i < n; ++i) marks_[static_cast<std::size_t>(numbers[i]) / bits] = 0;
  return distinct;
}

// Brings rows into ascending order, with the pieces of each in the order given. By digits, since
// comparisons took as long as the step.
void source::gather(std::ptrdiff_t rows) {
  struct place {
    std::ptrdiff_t row;
    std::size_t piece;
  };
  std::vector<place> places(numbers.size()), sorted(numbers.size());
  for (std::size_t i = 0; i < places.size(); ++i) places[i] = {numbers[i], i};
  constexpr int bits = 11;
  constexpr std::size_t digits = std::size_t{1} << bits;
  if (!std::is_sorted(numbers.begin(), numbers.end()))
    for (int shift = 0; (rows - 1) >> shift > 0; shift += bits) {
      const auto digit = [&](const place& p) {
        return static_cast<std::size_t>(p.row >> shift) % digits;
      };
      std::size_t begins[digits + 1] = {};
      for (const place& p : places) ++begins[digit(p) + 1];
      std::partial_sum(begins, begins + digits, begins);
      for (const place& p : places) sorted[begins[digit(p)]++] = p;
      places.swap(sorted);
    }
  std::vector<piece> unsorted(pieces_.size());
  unsorted.swap(pieces_);
  pieces_.clear(), numbers.clear();
  begins_.reserve(places.size() + 1);
  for (const place& p : places) {
    if (numbers.empty() || numbers.back() != p.row) {
      numbers.push_back(p.row);
      begins_.push_back(static_cast<std::ptrdiff_t>(pieces_.size()));
    }
    pieces_.push_back(unsorted[p.piece]);
  }
  begins_.push_back(static_cast<std::ptrdiff_t>(pieces_.size()));
}

void source::spread(std::vector<std::size_t> of, span& a) {
  sets.swap(of);
  fill(a);
}

void source::scale_rows(std::vector<double> factors, std::ptrdiff_t row_size) {
  factors_ = std::move(factors);
  row_size_ = row_size;
}

void source::fill(span& a) const {
  a.width -= a.g.width;
  const double* const factors = factors_.empty() ? nullptr : factors_.data();
  if (by_row_) {
    rows_ = {numbers.data(), begins_.empty() ? nullptr : begins_.data(), pieces_.data(), factors,
             sets.empty() ? nullptr : sets.data()};
    a.rows = &rows_;
    a.row_size = row_size_;
    a.size = row_size_ * count();
    a.g = {nullptr, kind::sum, pieces_.empty() ? 0 : width_of(pieces_.front().kind)};
  } else if (pieces_.size() == 1 && pieces_.front().weight == 1 && factors == nullptr) {
    const piece& only = pieces_.front();
    a.g = {only.data, only.kind, width_of(only.kind)};
  } else {
    sum_ = {pieces_.data(), static_cast<std::ptrdiff_t>(pieces_.size()), 0, factors, row_size_};
    a.g = {&sum_, kind::sum, 0};
    for (const piece& one : pieces_) a.g.width += width_of(one.kind);
  }
  a.width += a.g.width;
}

}  // namespace schuss
