#include "tensors.hpp"

#include <cmath>

namespace schuss {

namespace {

constexpr char capsule_name[] = "dlpack_exchange_api";

struct dl_exchange {
  std::uint32_t major, minor;
  const dl_exchange* before;
  void (*functions[3])();  // that allocate
  dl_view view;            // may be null
};

dl_view view_of(const py::object& exchange) {
  if (exchange.is_none()) return nullptr;
  const auto* const found =
      static_cast<const dl_exchange*>(PyCapsule_GetPointer(exchange.ptr(), capsule_name));
  if (found == nullptr) throw py::error_already_set();
  return found->major == 1 ? found->view : nullptr;
}

bool is_of_kind(const dl_tensor& t, kind k) {
  constexpr int floating = 2, brain = 4;
  if (t.lanes != 1 || t.bits != 8 * width_of(k)) return false;
  return t.code == (k == kind::bfloat16 ? brain : floating);
}

// Whether a tensor lies as an array does: on the CPU, with its type, shape and strides.
bool is_like(const dl_tensor& t, const py::array& a) {
  constexpr int cpu = 1;
  const py::detail::PyArray_Proxy* const own = fields(a);
  const std::optional<kind> k = kind_of(a);
  if (t.device != cpu || t.dimensions != own->nd || !k || !is_of_kind(t, *k)) return false;
  for (int axis = 0; axis < own->nd; ++axis)
    if (t.shape[axis] != own->dimensions[axis] ||
        (t.shape[axis] > 1 && t.strides[axis] * width_of(*k) != own->strides[axis]))
      return false;
  return true;
}

char* data_of(const dl_tensor& t) { return static_cast<char*>(t.data) + t.byte_offset; }

}  // namespace

class tensors::aimed {
 public:
  explicit aimed(tensors& own) : own_(own) {
    static const auto& name = *new py::object(interned("grad"));
    held_.reserve(own.entries_.size());
    try {
      for (std::size_t i = 0; i < own.entries_.size(); ++i) {
        PyObject* const gradient = PyObject_GetAttr(own.entries_[i].stepped.ptr(), name.ptr());
        if (gradient == nullptr) throw py::error_already_set();
        held_.push_back(py::reinterpret_steal<py::object>(gradient));
        own.aim(i, gradient);
      }
    } catch (...) {
      rest();
      throw;
    }
  }
  ~aimed() { rest(); }
  aimed(const aimed&) = delete;
  aimed& operator=(const aimed&) = delete;

 private:
  void rest() {
    for (std::size_t i = 0; i < own_.entries_.size(); ++i) {
      const entry& e = own_.entries_[i];
      py::detail::array_proxy(e.g.ptr())->data = e.rest;
      own_.put(i, e.g);
    }
  }

  tensors& own_;
  std::vector<py::object> held_;  // or another thread might free what is read
};

tensors::tensors(const py::object& exchange, py::type type, py::object other, py::object written)
    : view_(view_of(exchange)),
      type_(std::move(type)),
      other_(std::move(other)),
      written_(std::move(written)) {}

void tensors::begin_group(py::dict own, py::tuple names, bool any_rate) {
  const std::size_t first = entries_.size();
  groups_.push_back({std::move(own), std::move(names), any_rate, first, first, {}});
}

void tensors::add(py::object parameter, py::object stepped, py::array x, py::array g) {
  char* const rest = fields(g)->data;
  py::reinterpret_borrow<py::list>(gradients_).append(g);
  entries_.push_back({std::move(parameter), std::move(stepped), std::move(x), std::move(g), rest});
  groups_.back().end = entries_.size();
}

// ---- What groups say

void tensors::follow() {
  for (group& own : groups_) {
    own.values.clear();
    for (const py::handle name : own.names)
      own.values.push_back(py::reinterpret_borrow<py::object>(own.dict[name]));
  }
}

bool tensors::has_its_parameters(const group& own) const {
  static const auto& params = *new py::object(interned("params"));
  PyObject* const now = PyDict_GetItemWithError(own.dict.ptr(), params.ptr());
  if (now == nullptr || !PyList_Check(now)) return false;
  if (PyList_GET_SIZE(now) != static_cast<Py_ssize_t>(own.end - own.first)) return false;
  for (std::size_t i = own.first; i < own.end; ++i)
    if (PyList_GET_ITEM(now, static_cast<Py_ssize_t>(i - own.first)) != entries_[i].parameter.ptr())
      return false;
  return true;
}

bool tensors::holds(const py::list& groups) const {
  if (groups.size() != groups_.size()) return false;
  for (std::size_t k = 0; k < groups_.size(); ++k) {
    const bool same =
        PyList_GET_ITEM(groups.ptr(), static_cast<Py_ssize_t>(k)) == groups_[k].dict.ptr();
    if (!same || !has_its_parameters(groups_[k])) return false;
  }
  return true;
}

py::object tensors::rate(const py::list& groups) const {
  const py::object changed = py::bool_(false);
  py::object lr = py::none();
  if (!holds(groups)) return changed;
  for (const group& own : groups_) {
    if (own.values.size() != own.names.size()) return changed;
    for (std::size_t n = 0; n < own.values.size(); ++n) {
      PyObject* const name = PyTuple_GET_ITEM(own.names.ptr(), static_cast<Py_ssize_t>(n));
      PyObject* const now = PyDict_GetItemWithError(own.dict.ptr(), name);
      if (now == own.values[n].ptr()) continue;
      if (n > 0 || !own.any_rate || now == nullptr || !PyFloat_CheckExact(now)) return changed;
      const double rate = PyFloat_AS_DOUBLE(now);
      if (!(rate >= 0 && std::isfinite(rate))) return changed;
      lr = py::reinterpret_borrow<py::object>(now);
    }
  }
  return lr;
}

// ---- A step

bool tensors::step(plan& own, const py::object& lr, const py::object& loss) {
  const held lock = own.hold();
  py::list stepped;
  {
    const aimed here(*this);
    if (!own.step({gradients_, lr, loss, py::none()})) return false;
    for (std::size_t i = 0; i < entries_.size(); ++i)
      if (PyList_GET_ITEM(gradients_.ptr(), static_cast<Py_ssize_t>(i)) != Py_None)
        stepped.append(entries_[i].stepped);
  }
  written_(stepped);
  return true;
}

void tensors::aim(std::size_t i, py::handle gradient) {
  if (!gradient.is_none() && aim_directly(entries_[i], gradient)) return;
  put(i, gradient.is_none() ? py::none() : other_(i, gradient));
}

void tensors::put(std::size_t i, const py::object& gradient) {
  const auto place = static_cast<Py_ssize_t>(i);
  if (PyList_GET_ITEM(gradients_.ptr(), place) == gradient.ptr()) return;
  if (PyList_SetItem(gradients_.ptr(), place, py::object(gradient).release().ptr()) != 0)
    throw py::error_already_set();
}

// Aims at a gradient that lies as its parameter does, which is where it was.
bool tensors::aim_directly(const entry& e, py::handle gradient) const {
  dl_tensor x{}, g{};
  if (view_ == nullptr || reinterpret_cast<PyObject*>(Py_TYPE(gradient.ptr())) != type_.ptr())
    return false;
  if (view_(e.stepped.ptr(), &x) != 0 || view_(gradient.ptr(), &g) != 0) {
    PyErr_Clear();  // of a kind that has no strides
    return false;
  }
  if (!is_like(x, e.x) || !is_like(g, e.x)) return false;
  if (e.x.size() == 0) return true;
  if (data_of(x) != fields(e.x)->data || g.data == nullptr) return false;
  // An imaginary part may be read with the other sign: as it lies with a gap between its elements,
  // only one of them looks like an array.
  static const auto& negated = *new py::object(interned("is_neg"));
  if (e.x.size() == 1 && gradient.attr(negated)().cast<bool>()) return false;
  py::detail::array_proxy(e.g.ptr())->data = data_of(g);
  return true;
}

}  // namespace schuss
